// Two models side by side: two lists for a person, blind; a choice by click or key; the tally of all choices.
import { get, post } from "./api.js";
import { $, failed, head, named, newTurn, present, say } from "./page.js";
import { become, open } from "./person.js";
import { image, make, percent, tile } from "./tiles.js";

const LISTED = 12;
const SIDES = { left: "Left is better", neither: "No difference", right: "Right is better" };
const KEYS = { ArrowLeft: "left", ArrowDown: "neither", ArrowRight: "right", 1: "left", 2: "neither", 3: "right" };
const round = { user: null, isOpen: false, isCurrent: () => false };

// Compare the lists of a person; null: of one by chance.
export async function showComparison(user = null) {
  const isCurrent = newTurn();
  head("Which list is better?", "Two models, the same person. The sides are drawn by chance, and no name is shown.", ["panel"]);
  present([], () => null);
  $("panel").replaceChildren();
  say("Loading\u2026");
  try {
    const asked = user ?? (await get("/v1/users?order=chance&limit=1")).users[0]?.id;
    if (!asked) throw new Error("There is nobody to compare lists for.");
    const [person, lists, tally] = await Promise.all([
      get(`/v1/users/${encodeURIComponent(asked)}`),
      post("/v1/comparison/lists", { user: asked, k: LISTED }),
      get("/v1/comparison"),
    ]);
    if (!isCurrent()) return;
    become(asked);
    named({ view: "compare" });
    Object.assign(round, { user: asked, isOpen: true, isCurrent });
    $("panel").replaceChildren(liked(person), buttons(), sides(lists), result(tally));
    say("Choose by a button, or by the keys 1, 2 and 3.");
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

function liked(person) {
  return make("section", { "aria-label": "Liked" }, make("h2", {}, `${person.id} liked`),
    make("ul", { class: "strip" }, ...person.likes.slice(0, 30).map((item) =>
      make("li", {}, make("button", { type: "button", onclick: () => open(item) }, image(item))))));
}

function buttons() {
  return make("div", { class: "choice verdict", role: "group", "aria-label": "Your choice" },
    ...Object.entries(SIDES).map(([side, label], place) => make("button", {
      type: "button", class: side === "neither" ? "" : "strong", "data-side": side, onclick: () => choose(side),
      "aria-keyshortcuts": String(place + 1),
    }, label)));
}

function sides(lists) {
  return make("div", { class: "sides" }, ...["left", "right"].map((side) => make("section", { "aria-label": `List on the ${side}` },
    make("h2", {}, side === "left" ? "Left" : "Right"),
    make("ul", { class: "few" }, ...lists[side].map((item) => tile(item, { open }))))));
}

async function choose(choice) {
  if (!round.isOpen || !round.isCurrent()) return;
  round.isOpen = false;
  try {
    const found = await post("/v1/comparison/choices", { user: round.user, choice });
    if (!round.isCurrent()) return;
    await showComparison();
    $("panel").querySelector(".tally")?.replaceWith(result(found));
    $("panel").querySelector(`[data-side=${choice}]`)?.focus({ preventScroll: true });
    say(`Stored: ${SIDES[choice].toLowerCase()}. The next person:`);
  } catch (error) {
    round.isOpen = true;
    say(error.message, true);
  }
}

// The tally: names of the models, wins, and how sure the difference is.
function result(tally) {
  const bar = make("div", { class: "track whisker", role: "img", "aria-label": tally.statement });
  const [low, high] = tally.interval;
  const reach = make("i", { class: "reach" });
  Object.assign(reach.style, { left: percent(low), width: percent(high - low) });
  bar.append(reach);
  if (tally.share !== null) {
    const point = make("i", { class: "point" });
    point.style.left = percent(tally.share);
    bar.append(point);
  }
  return make("section", { class: "tally", "aria-label": "Tally" },
    make("h2", {}, "So far"),
    make("p", { class: "names" }, make("span", {}, `${tally.models[1]}: ${tally.wins[1]}`), make("span", {}, `${tally.models[0]}: ${tally.wins[0]}`)),
    bar, make("p", {}, tally.statement));
}

addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, dialog, .grid");
  const choice = KEYS[event.key];
  if (!choice || isTyping || event.ctrlKey || event.altKey || event.metaKey || !round.isOpen || !round.isCurrent()) return;
  if (event.key.startsWith("Arrow") && !event.target.closest?.(".verdict")) return; // arrows scroll elsewhere
  event.preventDefault();
  choose(choice);
});
