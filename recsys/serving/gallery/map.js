// Map: the whole catalogue as points, laid out by content, style and words, coloured by groups or by taste.
import { addressOf, asked, galleryAddress } from "./address.js";
import { arrayOf, get, pictureOf } from "./api.js";
import { Camera, wantsStill } from "./map-camera.js";
import { byGroups, byTaste, cssOf, groupLegend, plain, tasteLegend, theme } from "./map-colours.js";
import { Cards, Places, SIDE } from "./map-data.js";
import { Person } from "./map-person.js";
import { Pictures } from "./map-pictures.js";
import { makePoints } from "./map-points.js";
import { describe, make, MODALITIES } from "./tiles.js";

const MORPH = 1100; // milliseconds
const REACH = 14; // pixels from a point that a pointer may be
const COLOURS = { artist: "artist", tags: "tag", taste: "taste" };
const $ = (id) => document.getElementById(id);
const canvas = $("map");
const person = new Person({
  changed: () => { if (state.colour === "taste") showTaste(); },
  failed: (error) => failed(error),
});
const state = {
  card: null, laying: null, layout: null, colour: null, only: null, painted: null, taste: null,
  arrays: new Map(), places: null, from: null, morph: null, hovered: -1, frame: 0, arranged: 0, turn: 0,
  address: null,
};
let [points, cards, pictures] = [null, null, null];
const camera = new Camera(canvas, {
  moved: () => draw(),
  hover: (left, top) => hover(itemAt(left, top), left, top),
  left: () => hover(-1),
  tap: (left, top) => open(itemAt(left, top)),
  enter: () => open(middle()),
});

function say(text, { isError = false, share = null, again = null } = {}) {
  $("map-message").hidden = !text;
  $("map-message").classList.toggle("error", isError);
  $("map-status").textContent = text;
  $("map-progress").hidden = share === null;
  if (share) $("map-progress").value = share;
  $("map-message").querySelector("button")?.remove();
  if (again) $("map-message").append(make("button", { type: "button", class: "strong", onclick: anew(again) }, "Try again"));
  else if (isError) $("map-message").append(make("button", { type: "button", onclick: () => say("") }, "Close"));
}

// A layout and a taste are loaded side by side: how far one has come does not hide how the other failed.
function tell(text, share = null) {
  if (!$("map-message").classList.contains("error")) say(text, { share });
}

// What a person asks for takes an earlier error away.
const anew = (act) => () => {
  say("");
  act();
};

// An array that is gone belongs to a bundle that is not served any more: the page begins anew.
function failed(error, again) {
  say(error.message, { isError: true, again: error.isGone ? () => location.reload() : again });
}

async function array(kind, name) {
  const path = `/v1/map/${encodeURIComponent(state.card.version)}/${kind}/${name}`;
  if (!state.arrays.has(path)) {
    state.arrays.set(path, await arrayOf(path, Uint16Array, (share) => {
      if (!state.places || share < 1) tell("Loading the map\u2026", share);
    }));
    tell("");
  }
  return state.arrays.get(path);
}

// Choose a layout; points glide there from where they are.
async function layOut(name) {
  const turn = ++state.turn;
  state.laying = name;
  press("map-layouts", name);
  try {
    const layout = await array("layouts", name);
    await state.morph?.done;
    if (turn !== state.turn) return;
    const from = state.from ?? layout;
    points.setLayouts(from, layout);
    state.layout = name;
    state.places = new Places(layout);
    state.from = layout;
    hover(-1);
    pictures.clear();
    if (from !== layout && !wantsStill()) glide();
    canvas.setAttribute("aria-label", `Map of the catalogue by ${MODALITIES[name]}`);
    tellCount();
    address();
    draw();
  } catch (error) {
    if (turn === state.turn) failed(error, () => layOut(name));
  }
}

function glide() {
  let finish;
  const done = new Promise((resolve) => { finish = resolve; });
  state.morph = { start: null, done, finish };
  draw();
}

async function colour(by) {
  press("map-colours", by);
  Object.assign(state, { colour: by, only: null });
  $("map-pick").hidden = by !== "taste";
  if (by === "taste") {
    await showTaste();
  } else {
    try {
      await array("groups", by);
      if (state.colour === by) paint();
    } catch (error) {
      failed(error, () => colour(by));
    }
  }
}

async function showTaste() {
  try {
    if (!person.id) await person.becomeAnybody();
    const { id } = person;
    $("person").value = id;
    tell(`Scoring all pictures for ${id}\u2026`, 0);
    const path = `/v1/map/${encodeURIComponent(state.card.version)}/taste?user=${encodeURIComponent(id)}`;
    const [taste] = await Promise.all([arrayOf(path, Float32Array), person.read()]);
    if (id !== person.id || state.colour !== "taste") return;
    state.taste = taste;
    tell("");
    paint();
  } catch (error) {
    failed(error, () => { person.become(null); showTaste(); });
  }
}

// Colours and legend as they are chosen.
function paint() {
  const { card, colour: by, only } = state;
  if (by === "taste") {
    if (!state.taste) return;
    state.painted = byTaste(state.taste);
    $("map-legend").replaceChildren(tasteLegend(person.id, state.painted.sorted, state.taste.by));
  } else if (by) {
    const members = state.arrays.get(`/v1/map/${encodeURIComponent(card.version)}/groups/${by}`);
    const groups = card.groups[by];
    state.painted = byGroups(members, groups, only);
    const rest = members.reduce((sum, bits) => sum + (bits === 0), 0);
    $("map-legend").replaceChildren(groupLegend(groups, only, rest, (place) => { state.only = place; paint(); }));
  } else {
    state.painted = plain(card.items);
  }
  points.setColours(state.painted.colours, state.painted.order);
  state.arranged = 0;
  inset();
  address();
  draw();
}

function draw() {
  if (!state.frame) state.frame = requestAnimationFrame(frame);
}

function frame(now) {
  state.frame = 0;
  if (!points || !state.places || !state.painted) return;
  let isMoving = camera.advance(now);
  let share = 1;
  if (state.morph) {
    state.morph.start ??= now;
    const part = Math.min(1, (now - state.morph.start) / MORPH);
    share = part < 0.5 ? 4 * part ** 3 : 1 - (2 - 2 * part) ** 3 / 2;
    isMoving = true;
    if (part === 1) {
      state.morph.finish();
      state.morph = null;
    }
  }
  const ratio = resize();
  const paper = theme() === "dark" ? [22, 21, 19] : [250, 248, 244];
  points.draw({ x: camera.x, y: camera.y, scale: camera.scale * ratio, share, size: pointSize() * ratio, paper });
  canvas.dataset.zoom = camera.zoom.toFixed(2);
  seePictures(now);
  ring();
  if (isMoving) draw();
}

function seePictures(now) {
  if (state.morph || $("map-thumbs").getAttribute("aria-pressed") === "false") {
    pictures.clear();
    return;
  }
  if (now - state.arranged > 120) {
    state.arranged = now;
    pictures.arrange(camera, state.places, (item) => cssOf(state.painted.colours, item));
  } else {
    pictures.follow(camera);
    clearTimeout(state.settling);
    state.settling = setTimeout(() => { state.arranged = 0; draw(); }, 130);
  }
}

// Pixels of a point: as many as the catalogue leaves free, more when zoomed in.
function pointSize() {
  const free = Math.sqrt(canvas.clientWidth * canvas.clientHeight / Math.max(1, state.card.items));
  return Math.min(14, Math.max(2, Math.min(7, free * 0.42)) * camera.zoom ** 0.4);
}

// Fit the canvas to its place; return its pixels a pixel of the page.
function resize() {
  const most = points.isAccelerated && state.card.items <= 200_000 ? 2 : 1;
  const ratio = Math.min(most, devicePixelRatio);
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

// Leave the panel out of what "everything" fits into.
function inset() {
  const panel = $("map-panel").getBoundingClientRect();
  const isBeside = panel.width < 0.5 * canvas.clientWidth;
  const { home } = camera;
  const wasHome = Object.entries(home).every(([name, value]) => camera[name] === value);
  camera.insets = isBeside ? { left: panel.right, top: 0, right: 0, bottom: 0 }
    : { left: 0, right: 0, top: 0, bottom: panel.height };
  if (wasHome) camera.fit(true);
}

// Items

function itemAt(left, top) {
  if (!state.places || state.morph) return -1;
  const pictured = pictures.at(camera, left, top);
  if (pictured >= 0) return pictured;
  const [x, y] = camera.toMap(left, top);
  return state.places.nearest(x * SIDE, y * SIDE, REACH / camera.scale * SIDE);
}

// The item nearest to the middle of what is seen.
function middle() {
  if (!state.places || state.morph) return -1;
  const radius = Math.max(canvas.clientWidth, canvas.clientHeight) / 2 / camera.scale;
  for (const share of [0.05, 0.2, 1]) {
    const item = state.places.nearest(camera.x * SIDE, camera.y * SIDE, share * radius * SIDE);
    if (item >= 0) return item;
  }
  return -1;
}

function ring() {
  const byKey = document.activeElement === canvas && canvas.matches(":focus-visible");
  if (byKey && !camera.glide && !state.morph) hover(middle());
  const item = state.hovered;
  $("map-ring").hidden = item < 0;
  if (item < 0) return;
  const { points: places } = state.places;
  const [left, top] = camera.toScreen(places[2 * item] / SIDE, places[2 * item + 1] / SIDE);
  const shown = pictures.shown.has(item) ? pictures.size * camera.scale / pictures.anchor.scale : pointSize();
  const { style } = $("map-ring");
  style.width = style.height = `${shown + 8}px`;
  style.borderRadius = pictures.shown.has(item) ? "12px" : "50%";
  style.transform = `translate(${left - shown / 2 - 4}px, ${top - shown / 2 - 4}px)`;
  placeCard(left, top, shown / 2 + 12);
}

async function hover(item) {
  if (item === state.hovered) return;
  state.hovered = item;
  canvas.classList.toggle("over", item >= 0);
  $("map-card").hidden = true;
  draw();
  if (item < 0) return;
  try {
    const [found] = await cards.of([item]);
    if (item !== state.hovered) return;
    const group = state.colour === "taste" && state.taste?.by === "full"
      ? `${(100 * state.taste[item]).toFixed(1)}% likely to be liked by ${person.id}` : null;
    $("map-card").replaceChildren(make("img", { src: pictureOf(found.id), alt: "" }),
      make("b", {}, found.title || found.id), found.artist ? make("span", { class: "by" }, `by ${found.artist}`) : "",
      group ? make("span", { class: "reason" }, group) : "");
    $("map-card").hidden = false;
    if (canvas.matches(":focus-visible")) $("map-said").textContent = describe(found);
    draw();
  } catch (error) {
    failed(error);
  }
}

function placeCard(left, top, away) {
  const card = $("map-card");
  if (card.hidden) return;
  const [width, height] = [card.offsetWidth, card.offsetHeight];
  const isRight = left + away + width < canvas.clientWidth;
  const across = isRight ? left + away : Math.max(8, left - away - width);
  const down = Math.min(Math.max(8, top - height / 2), canvas.clientHeight - height - 8);
  card.style.transform = `translate(${across}px, ${down}px)`;
}

async function open(item) {
  if (item < 0) return;
  try {
    const [found] = await cards.of([item]);
    hover(-1);
    await person.open(found);
  } catch (error) {
    failed(error);
  }
}

// Controls

function press(place, name) {
  for (const button of $(place).children) button.setAttribute("aria-pressed", String(button.value === name));
}

function tellCount() {
  const { present } = state.places;
  const { items } = state.card;
  $("map-count").textContent = present === items ? `${items.toLocaleString("en")} pictures`
    : `${present.toLocaleString("en")} of ${items.toLocaleString("en")} pictures; the others have no ${MODALITIES[state.layout]}`;
}

// Name what is shown in the address, unless the address has changed since it was read: its event comes.
function address() {
  if (!state.layout || location.hash !== state.address) return;
  const { layout, colour: by } = state;
  const whose = person.id ? { person: person.id } : {};
  history.replaceState(null, "", addressOf({ layout, ...(by ? { colour: by } : {}), ...whose }));
  state.address = location.hash;
  $("map-back").href = galleryAddress(whose);
}

// Show what the address names; what it leaves out stays, and is the first of its kind at the start.
async function follow() {
  state.address = location.hash;
  const { layouts, groups } = state.card;
  const { layout, colour: by, person: id } = asked();
  const isNew = Boolean(id) && id !== person.id;
  if (isNew) {
    document.getElementById("dialog").close();
    person.become(id);
  }
  const chosen = (names, wanted, now) => names.includes(wanted) ? wanted : now ?? names[0];
  const laid = chosen(layouts, layout, state.laying);
  const coloured = chosen([...Object.keys(groups), "taste"], by ?? (isNew ? "taste" : null), state.colour);
  await Promise.all([
    ...(laid === state.laying ? [] : [layOut(laid)]),
    ...(coloured === state.colour && !isNew ? [] : [colour(coloured)]),
  ]);
  address();
}

function controls({ layouts, groups }) {
  const button = (value, text, onclick) => make("button", { type: "button", value, "aria-pressed": "false", onclick }, text);
  $("map-layouts").replaceChildren(...layouts.map((name) => button(name, MODALITIES[name], anew(() => layOut(name)))));
  $("map-colours").replaceChildren(...[...Object.keys(groups), "taste"].map((name) => button(name, COLOURS[name], anew(() => colour(name)))));
  $("map-panel").hidden = $("map-zoom").hidden = false;
}

$("map-in").addEventListener("click", () => camera.step(1));
$("map-out").addEventListener("click", () => camera.step(-1));
$("map-fit").addEventListener("click", () => camera.fit());
$("map-thumbs").addEventListener("click", ({ currentTarget }) => {
  currentTarget.setAttribute("aria-pressed", String(currentTarget.getAttribute("aria-pressed") === "false"));
  state.arranged = 0;
  draw();
});
$("map-pick").addEventListener("submit", (event) => {
  event.preventDefault();
  person.become($("person").value.trim() || null);
  anew(showTaste)();
});
$("map-surprise").addEventListener("click", () => {
  person.become(null);
  anew(showTaste)();
});
// The dialog names people by their addresses. As long as nothing can be drawn, `start` will read the address.
addEventListener("hashchange", () => {
  if (points) anew(follow)();
});
$("person").addEventListener("input", async ({ target }) => {
  try {
    const { users } = await get(`/v1/users?limit=12&prefix=${encodeURIComponent(target.value)}`);
    $("people").replaceChildren(...users.map((user) => make("option", { value: user.id }, `${user.likes} likes`)));
  } catch (error) {
    failed(error);
  }
});
canvas.addEventListener("blur", () => hover(-1));
canvas.addEventListener("focus", draw);
canvas.addEventListener("webglcontextlost", () => failed(new Error("The graphics processor was taken away."), () => location.reload()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.painted && paint());
new ResizeObserver(() => {
  if (!points) return;
  inset();
  draw();
}).observe(canvas);

async function start() {
  say("Loading the map\u2026", { share: 0 });
  try {
    const card = await get("/v1/map");
    if (!card.layouts.length || !card.items) {
      say(card.items ? "This bundle has no map. Export it again with map=true: python launch/export.py data=... workspace=... run.name=... map=true" : "The catalogue is empty.");
      return;
    }
    state.card = card;
    cards = new Cards(card.version, get);
    pictures = new Pictures($("map-pictures"), cards);
    points ??= makePoints(canvas, asked().drawn === "webgl");
    canvas.dataset.drawn = points.isAccelerated ? "webgl" : "processor";
    controls(card);
    inset();
    camera.fit(true);
    await follow();
  } catch (error) {
    failed(error, start);
  }
}

start();
