// Colours of the map: of groups of items, and of what a person thinks of them.
import { make } from "./tiles.js";

const GROUPS = {
  light: ["#c2562d", "#2f7f6f", "#5b6bb0", "#c1901a", "#8a4a83", "#3587b0", "#76852a", "#cc6286", "#7a5a3a", "#3f9152", "#8f56c8", "#d97b2b"],
  dark: ["#ea8257", "#5fc2ac", "#92a1ee", "#e8c24f", "#c889c4", "#69bfe8", "#b5c957", "#f29ab5", "#bb9570", "#7fd08f", "#c39bf2", "#ffb36b"],
};
const OTHERS = { light: "#bdb6a9", dark: "#57524a" };
const FADED = { light: "#e6e1d8", dark: "#2b2825" };
const SCALE = {
  light: ["#e4dfd5", "#e3b78f", "#d9743f", "#a32f2a", "#4f1437"],
  dark: ["#2e2a3a", "#6c3260", "#c2495a", "#f08c4f", "#fde9a6"],
};
const STEPS = 256;

export const theme = () => matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
const partsOf = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
export const cssOf = (rgba, item) => `rgb(${rgba[4 * item]} ${rgba[4 * item + 1]} ${rgba[4 * item + 2]})`;

// Colours of shades, and the order in which items are drawn: greater shades later.
function painted(shades, palette) {
  const counts = new Uint32Array(palette.length + 1);
  for (const shade of shades) counts[shade + 1]++;
  for (let shade = 0; shade < palette.length; shade++) counts[shade + 1] += counts[shade];
  const order = new Uint32Array(shades.length);
  const colours = new Uint8Array(4 * shades.length);
  const words = new Uint32Array(colours.buffer);
  const packed = palette.map(([red, green, blue]) => (0xff << 24 | blue << 16 | green << 8 | red) >>> 0);
  shades.forEach((shade, item) => {
    order[counts[shade]++] = item;
    words[item] = packed[shade];
  });
  return { colours, order };
}

// Items coloured by the smallest of their groups that is listed; with `only`, by that group alone.
export function byGroups(members, groups, only = null) {
  const mode = theme();
  const shades = new Uint8Array(members.length);
  const palette = [only === null ? OTHERS[mode] : FADED[mode], ...groups.map((_, place) => GROUPS[mode][place])].map(partsOf);
  members.forEach((bits, item) => {
    if (only === null) shades[item] = bits ? 32 - Math.clz32(bits) : 0;
    else shades[item] = bits >> only & 1 ? only + 1 : 0;
  });
  return painted(shades, palette);
}

// Items coloured by the rank of their scores: a tenth of the items has a tenth of the scale.
export function byTaste(scores) {
  const sorted = scores.slice().sort();
  const borders = Float32Array.from({ length: STEPS - 1 }, (_, step) => sorted[Math.floor((step + 1) * sorted.length / STEPS)]);
  const shades = Uint8Array.from(scores, (score) => {
    let [low, high] = [0, STEPS - 1];
    while (low < high) {
      const middle = low + high >> 1;
      if (borders[middle] <= score) low = middle + 1;
      else high = middle;
    }
    return low;
  });
  const stops = SCALE[theme()].map(partsOf);
  const palette = Array.from({ length: STEPS }, (_, step) => {
    const place = step / (STEPS - 1) * (stops.length - 1);
    const first = Math.min(stops.length - 2, Math.floor(place));
    return stops[first].map((part, n) => Math.round(part + (stops[first + 1][n] - part) * (place - first)));
  });
  return { ...painted(shades, palette), sorted };
}

export function plain(count) {
  return painted(new Uint8Array(count), [partsOf(GROUPS[theme()][0])]);
}

// Legend of groups and of the `rest`, items of none; `choose(place)` shows one alone, null all of them.
export function groupLegend(groups, only, rest, choose) {
  const swatch = (colour) => {
    const mark = make("i", { class: "swatch" });
    mark.style.background = colour;
    return mark;
  };
  const number = (value) => make("span", { class: "count" }, value.toLocaleString("en"));
  const rows = groups.map((group, place) => make("li", {}, make("button", {
    type: "button", "aria-pressed": String(only === place), title: `Show ${group.name} alone`,
    onclick: () => choose(only === place ? null : place),
  }, swatch(GROUPS[theme()][place]), make("span", { class: "name" }, group.name), number(group.count))));
  if (rest) {
    rows.push(make("li", {}, make("span", { class: "rest" }, swatch(OTHERS[theme()]), make("span", { class: "name" }, "others"), number(rest))));
  }
  return make("ul", { "aria-label": "Legend" }, ...rows);
}

// Legend of a person's taste. `by`: `full` or `direct`, as the server says.
export function tasteLegend(user, sorted, by) {
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const said = by === "full" ? (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%` : () => "";
  const bar = make("span", { class: "ramp", role: "img", "aria-label": `From least to most to the taste of ${user}` });
  bar.style.background = `linear-gradient(90deg, ${SCALE[theme()].join(", ")})`;
  return make("div", { class: "taste" }, bar,
    make("p", { class: "ends" }, make("span", {}, "least ", make("b", {}, said(at(0)))), make("span", {}, make("b", {}, said(at(0.5)))), make("span", {}, "most ", make("b", {}, said(at(1))))),
    make("p", { class: "reason" }, by === "full"
      ? `Probability that ${user} likes a picture, coloured by rank.`
      : `Direct term of ${user}'s score, coloured by rank: of a catalogue this large not all is scored in full.`));
}
