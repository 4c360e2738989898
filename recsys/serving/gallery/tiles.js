// Elements of pictures: tiles of the grid, mixes of modalities, and the gliding of tiles to new places.
import { pictureOf } from "./api.js";

export const MODALITIES = { semantic: "content", style: "style", text: "words", ids: "ids" };

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export function describe(item) {
  const name = item.title || item.id;
  const by = item.artist ? `${name}, by ${item.artist}` : name;
  return item.has_picture === false ? `${by} (picture masked or missing)` : by;
}

export function image(item) {
  return make("img", { src: pictureOf(item.id), alt: describe(item), loading: "lazy", decoding: "async" });
}

export function percent(share) {
  return `${Math.round(100 * share)}%`;
}

export function mix(weights) {
  const names = Object.keys(MODALITIES).filter((name) => name in weights);
  if (!names.length) return null;
  const said = names.map((name) => `${MODALITIES[name]} ${percent(weights[name])}`).join(", ");
  const bar = make("span", { class: "mix", role: "img", "aria-label": said, title: said });
  for (const name of names) {
    const part = make("i", { class: name });
    part.style.width = `${100 * weights[name]}%`;
    bar.append(part);
  }
  return bar;
}

// A tile of the grid. `on`: {open(item), like(item, button)}.
export function tile(item, on, isLiked) {
  const like = make("button", {
    type: "button", class: "like", "aria-pressed": String(isLiked),
    "aria-label": `Like ${describe(item)}`, onclick: (event) => on.like(item, event.currentTarget),
  }, "\u2665");
  const words = make("span", { class: "caption" }, make("b", {}, item.title || item.id),
    item.artist ? make("span", { class: "by" }, item.artist) : null,
    item.reason ? make("span", { class: "reason" }, item.reason.text) : null);
  const open = make("button", { type: "button", class: "open", onclick: () => on.open(item) },
    make("span", { class: "frame" }, image(item)), mix(item.weights ?? {}), words);
  const element = make("li", { class: "tile", "data-id": item.id }, open, like);
  return element;
}

// Put tiles into the grid in a new order; those that stay glide from where they were (FLIP).
export function arrange(grid, tiles) {
  const before = new Map([...grid.children].map((t) => [t.dataset.id, t.getBoundingClientRect()]));
  const focused = document.activeElement?.closest?.("#grid > li")?.dataset.id;
  grid.replaceChildren(...tiles);
  if (focused) grid.querySelector(`li[data-id="${CSS.escape(focused)}"] .open`)?.focus({ preventScroll: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const element of tiles) {
    const from = before.get(element.dataset.id);
    const to = element.getBoundingClientRect();
    if (from && to.width) {
      const [x, y, scale] = [from.left - to.left, from.top - to.top, from.width / to.width];
      if (x || y) {
        element.animate(
          [{ transformOrigin: "0 0", transform: `translate(${x}px, ${y}px) scale(${scale})` },
            { transformOrigin: "0 0", transform: "none" }],
          { duration: 420, easing: "cubic-bezier(.2,.8,.2,1)" });
      }
    } else if (before.size) {
      element.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 300 });
    }
  }
}
