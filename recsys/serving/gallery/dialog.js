// Dialog of one picture: large, its artist and tags, who likes it, why it is recommended or not, what is near.
import { get, post, pictureOf } from "./api.js";
import { addressOf } from "./address.js";
import { describe, image, make, mix, MODALITIES, percent } from "./tiles.js";

const RANKED = { k: 500, candidates: 5000, diversity: 0 };
const RAISED = 3; // times its value that a dial is tried at
const dialog = document.getElementById("dialog");
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// `who`: {user, dials, isLiked(item), isHidden(item)}; `on`: {like(item, button), hide(item), open(item),
// filterAddress(filter)}.
export async function openPicture(item, who, on) {
  const about = make("div", { class: "about" }, make("h2", { id: "dialog-title" }, item.title || item.id));
  const near = make("div", { class: "near" });
  const actions = make("div", { class: "actions" },
    make("button", { type: "button", class: "strong", "aria-pressed": String(who.isLiked(item)),
      onclick: (event) => on.like(item, event.currentTarget) }, "\u2665 Like"),
    make("button", { type: "button", onclick: () => { dialog.close(); on.hide(item); } }, "Hide"));
  const close = make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "\u00d7");
  const large = make("img", { src: pictureOf(item.id), alt: describe(item) });
  dialog.replaceChildren(make("div", { class: "sheet" }, large, about, near), close);
  dialog.dataset.id = item.id;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  about.append(actions);
  await Promise.all([tell(item, about, actions, who, on), ...["semantic", "style", "text"].map((by) => {
    const list = make("ul");
    near.append(make("section", { class: by, "aria-label": `Near by ${MODALITIES[by]}` },
      make("h3", {}, `Near by ${MODALITIES[by]}`), list));
    return fillNear(item, by, list, on.open);
  })]);
}

async function fillNear(item, by, list, open) {
  try {
    const found = await post("/v1/similar", { item: item.id, by, k: 6 });
    list.append(...found.items.map((other) => make("li", {},
      make("button", { type: "button", title: describe(other), onclick: () => open(other) }, image(other)))));
  } catch (error) {
    list.replaceWith(make("p", { class: "reason" }, error.message));
  }
}

async function tell(item, about, actions, who, on) {
  const place = make("div", { class: "likers" });
  about.append(place);
  try {
    const [card] = await Promise.all([get(`/v1/items/${encodeURIComponent(item.id)}`), tellLikers(item, place)]);
    const link = (filter, text) => make("a", { href: on.filterAddress(filter) }, text);
    if (card.artist) actions.before(make("p", { class: "by" }, "by ", link({ artist: card.artist }, card.artist)));
    if (card.text) actions.before(make("p", { class: "text" }, card.text));
    if (card.tags.length) {
      actions.before(make("ul", { class: "tags", "aria-label": "Tags" }, ...card.tags.map((tag) => make("li", {}, link({ tag }, tag)))));
    }
    if (!who.user) return;
    const why = make("button", { type: "button", onclick: () => explain(item, why, place, who) }, "Why, or why not?");
    actions.append(why);
  } catch (error) {
    actions.before(make("p", { class: "reason" }, error.message));
  }
}

// People whose history holds the picture.
async function tellLikers(item, place) {
  const found = await get(`/v1/items/${encodeURIComponent(item.id)}/likers?limit=12`);
  if (!found.count) {
    place.append(make("p", { class: "reason" }, "Nobody has liked it yet."));
    return;
  }
  const rest = found.count - found.users.length;
  place.append(make("h3", {}, found.count === 1 ? "One person likes it" : `${found.count.toLocaleString("en")} people like it`),
    make("ul", { class: "tags", "aria-label": "People who like it" },
      ...found.users.map((user) => make("li", {}, make("a", { href: addressOf({ person: user }) }, user))),
      rest > 0 ? make("li", { class: "rest" }, `and ${rest.toLocaleString("en")} more`) : null));
}

// Rank of an item for some dials; null: beyond the first 500.
async function rankOf(item, who, dials) {
  const exclude_seen = !who.isLiked(item);
  const found = await post("/v1/recommend", { user: who.user, dials, exclude_seen, ...RANKED });
  return found.items.find((other) => other.id === item.id)?.rank ?? null;
}

async function explain(item, button, before, who) {
  button.disabled = true;
  const place = make("div", { class: "about", "data-role": "why", role: "status" }, "Computing\u2026");
  before.before(place);
  try {
    const { user, dials } = who;
    const found = await post("/v1/explain", { user, item: item.id, dials });
    const names = Object.keys(found.weights);
    const [rank, ...raised] = await Promise.all([dials, ...names.map((name) =>
      ({ ...dials, [name]: Math.min(10, RAISED * (dials[name] ?? 1)) }))].map((d) => rankOf(item, who, d)));
    const lifts = names.map((name, n) => [name, raised[n]])
      .filter(([, r]) => r && r < (rank ?? RANKED.k + 1)).sort((a, b) => a[1] - b[1]);
    place.replaceChildren(make("p", {}, make("b", {}, `${standing(item, rank, who)} Probability ${percent(found.score)}.`), " ", lifting(rank, lifts)),
      make("p", { class: "reason" }, found.reason.text), mix(found.weights) ?? "", terms(found));
  } catch (error) {
    place.textContent = error.message;
    button.disabled = false;
  }
}

function standing(item, rank, who) {
  if (who.isHidden(item)) return "Hidden by this person: it is not recommended.";
  if (!rank) return `Not among the first ${RANKED.k}.`;
  return who.isLiked(item) ? `Liked already; rank ${rank} among all.` : `Rank ${rank}.`;
}

function lifting(rank, lifts) {
  if (rank === 1) return "Nothing is above it.";
  if (!lifts.length) return "No single dial would lift it.";
  const [[name, to]] = lifts;
  return `Three times the weight on ${MODALITIES[name] ?? name} would lift it to rank ${to}.`;
}

// Terms of the log-odds, each with a bar to the right where it speaks for the picture, to the left against it.
function terms(found) {
  const greatest = Math.max(...Object.values(found.terms).map(Math.abs), 1e-9);
  const rows = Object.entries(found.terms).map(([name, value]) => {
    const said = { first_order: "popularity and habits (first order)", second_order: "pairs of features (second order)", deep: "deep layers" }[name]
      ?? name.replace(/^match:(.*)$/, (_, m) => `match by ${MODALITIES[m] ?? m}`);
    const bar = make("i", { class: value < 0 ? "against" : "for" });
    bar.style.width = `${50 * Math.abs(value) / greatest}%`;
    return make("tr", {}, make("th", { scope: "row" }, said), make("td", { class: "bar-cell" }, bar), make("td", {}, signed(value)));
  });
  rows.push(make("tr", { class: "sum" }, make("th", { scope: "row" }, "log-odds"), make("td"), make("td", {}, signed(found.logit))));
  return make("table", { class: "terms" }, make("caption", {}, "Terms of the score"), make("tbody", {}, ...rows));
}

const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;
