// Parts of the page that every view uses: heading, status line, the pictures, and the address.
import { addressOf, asked } from "./address.js";
import { listed, Masonry } from "./masonry.js";
import { unwatch } from "./events.js";
import { make } from "./tiles.js";

export { addressOf, asked } from "./address.js";

export const $ = (id) => document.getElementById(id);
const SECTIONS = ["liked", "dials", "choice", "panel"];
const view = { makeTile: null, onend: null, turn: 0, hash: "" };

// The pictures of the page; a view says by `present` how a tile is made.
export const grid = new Masonry($("grid"), {
  makeTile: (item, place) => view.makeTile(item, place),
  left: unwatch,
  onend: () => view.onend?.(),
});

// A turn of the page: what is asked for later makes the answers to earlier turns void. An address that has
// changed asks for something else, from then on: its event comes only after answers that are there already.
export function newTurn() {
  view.onend = null;
  view.turn += 1;
  view.hash = location.hash;
  const { turn } = view;
  return () => turn === view.turn && view.hash === location.hash;
}

export function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

export function waiting() {
  grid.wait();
  say("Loading\u2026");
}

export function failed(error) {
  present([], () => null);
  say(error.message, true);
}

export function head(title, lead, sections = []) {
  [$("title").textContent, $("lead").textContent, document.title] = [title, lead, `${title} - Tessera gallery`];
  for (const id of SECTIONS) $(id).hidden = !sections.includes(id);
  $("marks").replaceChildren();
}

// Show a list of items, an array or what Masonry takes. `onend()`: the last ones are near.
export function present(items, makeTile, { onend = null, ...options } = {}) {
  Object.assign(view, { makeTile, onend });
  grid.ready();
  grid.show(Array.isArray(items) ? listed(items) : items, options);
}

// Name a view in the address without showing it again.
export function named(parameters) {
  const address = addressOf(parameters);
  if (location.hash.length < 2) history.replaceState(null, "", address);
  else if (location.hash !== address) history.pushState(null, "", address);
  view.hash = location.hash;
  markView();
}

// Mark the view of the address in the list of views.
export function markView() {
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === (asked().view ?? "")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// A condition that the list meets, with a button that lifts it.
export function mark(text, onremove) {
  $("marks").append(make("li", {}, text, make("button", { type: "button", "aria-label": `Lift the filter ${text}`, onclick: onremove }, "\u00d7")));
}
