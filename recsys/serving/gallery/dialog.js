// Dialog of one picture: large, its artist and tags, why it is recommended or not, and what is near to it.
import { get, post, pictureOf } from "./api.js";
import { describe, image, make, mix, MODALITIES, percent } from "./tiles.js";

const RANKED = { k: 500, candidates: 5000, diversity: 0 };
const dialog = document.getElementById("dialog");
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// `who`: {user, dials, isLiked(item)}; `like(item, button)` likes it.
export async function openPicture(item, who, like) {
  const about = make("div", { class: "about" }, make("h2", { id: "dialog-title" }, item.title || item.id));
  const near = make("div", { class: "near" });
  const close = make("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const likes = make("button", { type: "button", class: "strong", onclick: (e) => like(item, e.currentTarget) }, "\u2665 Like");
  const actions = make("div", { class: "actions" }, likes, close);
  const large = make("img", { src: pictureOf(item.id), alt: describe(item) });
  dialog.replaceChildren(make("div", { class: "sheet" }, large, about, near));
  dialog.dataset.id = item.id;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  about.append(actions);
  const again = (other) => openPicture(other, who, like);
  await Promise.all([tell(item, about, actions, who), ...["semantic", "style", "text"].map((by) => {
    const list = make("ul");
    near.append(make("section", { class: by, "aria-label": `Near by ${MODALITIES[by]}` },
      make("h3", {}, `Near by ${MODALITIES[by]}`), list));
    return fillNear(item, by, list, again);
  })]);
}

async function fillNear(item, by, list, again) {
  try {
    const found = await post("/v1/similar", { item: item.id, by, k: 6 });
    list.append(...found.items.map((other) => make("li", {},
      make("button", { type: "button", title: describe(other), onclick: () => again(other) }, image(other)))));
  } catch (error) {
    list.replaceWith(make("p", { class: "reason" }, error.message));
  }
}

async function tell(item, about, actions, who) {
  try {
    const card = await get(`/v1/items/${encodeURIComponent(item.id)}`);
    if (card.artist) actions.before(make("p", { class: "by" }, `by ${card.artist}`));
    if (card.text) actions.before(make("p", {}, card.text));
    actions.before(make("ul", { class: "tags", "aria-label": "Tags" }, ...card.tags.map((tag) => make("li", {}, tag))));
    if (!who.user) return;
    const why = make("button", { type: "button", onclick: () => explain(item, why, about, who) }, "Why, or why not?");
    actions.prepend(why);
  } catch (error) {
    actions.before(make("p", { class: "reason" }, error.message));
  }
}

// Rank of an item for each of some dials; null: beyond the first 500.
async function rankOf(item, who, dials) {
  const exclude_seen = !who.isLiked(item);
  const found = await post("/v1/recommend", { user: who.user, dials, exclude_seen, ...RANKED });
  return found.items.find((other) => other.id === item.id)?.rank ?? null;
}

async function explain(item, button, about, who) {
  button.disabled = true;
  const place = make("div", { class: "about", "data-role": "why", role: "status" }, "Computing\u2026");
  about.append(place);
  try {
    const { user, dials } = who;
    const found = await post("/v1/explain", { user, item: item.id, dials });
    const names = Object.keys(found.weights);
    const [rank, ...raised] = await Promise.all([dials, ...names.map((name) =>
      ({ ...dials, [name]: Math.min(10, 3 * (dials[name] ?? 1)) }))].map((d) => rankOf(item, who, d)));
    const stands = rank ? `Rank ${rank}` : `Not among the first ${RANKED.k}`;
    const lifts = names.map((name, n) => [name, raised[n]])
      .filter(([, r]) => r && r < (rank ?? RANKED.k + 1)).sort((a, b) => a[1] - b[1]);
    const lift = lifts.length
      ? `More weight on ${MODALITIES[lifts[0][0]] ?? lifts[0][0]} would lift it to rank ${lifts[0][1]}.`
      : "No dial alone would lift it.";
    const rows = Object.entries(found.terms).map(([name, value]) => {
      const said = name.replace("_", " ").replace(/^match:(.*)$/, (_, m) => `match by ${MODALITIES[m] ?? m}`);
      return make("tr", {}, make("td", {}, said), make("td", {}, value.toFixed(2)));
    });
    rows.push(make("tr", {}, make("td", {}, make("b", {}, "log-odds")), make("td", {}, make("b", {}, found.logit.toFixed(2)))));
    place.replaceChildren(make("p", {}, make("b", {}, `${stands}, probability ${percent(found.score)}. `), rank === 1 ? "" : lift),
      make("p", { class: "reason" }, found.reason.text), mix(found.weights) ?? "",
      make("table", { class: "terms" }, make("tbody", {}, ...rows)));
  } catch (error) {
    place.textContent = error.message;
    button.disabled = false;
  }
}
