// Elements of pictures: tiles, mixes of modalities, and what is said of a picture.
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
  return make("img", { src: pictureOf(item.id), alt: describe(item), decoding: "async", draggable: "false" });
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

// The colours of the mixes, in words.
export function legend(weights) {
  const names = Object.keys(MODALITIES).filter((name) => name in weights);
  return make("p", { class: "legend" }, ...names.map((name) => make("span", { class: name }, MODALITIES[name])));
}

// A tile. `on`: {open(item), like(item, button), hide(item)}, of which like and hide may be missing.
export function tile(item, on, isLiked = false) {
  const buttons = make("span", { class: "tools" });
  if (on.hide) {
    buttons.append(make("button", {
      type: "button", class: "hide", "aria-label": `Hide ${describe(item)}`, title: "Hide this",
      onclick: () => on.hide(item),
    }, "\u00d7"));
  }
  if (on.like) {
    buttons.append(make("button", {
      type: "button", class: "like", "aria-pressed": String(isLiked), title: "Like this",
      "aria-label": `Like ${describe(item)}`, onclick: (event) => on.like(item, event.currentTarget),
    }, "\u2665"));
  }
  const words = make("span", { class: "caption" }, make("b", {}, item.title || item.id),
    item.artist ? make("span", { class: "by" }, item.artist) : null,
    item.reason ? make("span", { class: "reason" }, item.reason.text) : null,
    item.note ? make("span", { class: "reason" }, item.note) : null);
  const open = make("button", { type: "button", class: "open", onclick: () => on.open(item) },
    make("span", { class: "frame" }, image(item)), mix(item.weights ?? {}), words);
  return make("li", { class: "tile", "data-id": item.id }, open, buttons);
}

export const skeleton = () => make("li", { class: "tile skeleton", "aria-hidden": "true" });
