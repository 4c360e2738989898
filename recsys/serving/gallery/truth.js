// Truth: the oracle's probability of each picture beside ours, in the drawn world, and where we are wrong most.
import { get, post } from "./api.js";
import { $, failed, head, named, newTurn, present, say, waiting } from "./page.js";
import { become, open } from "./person.js";
import { make, percent, tile } from "./tiles.js";

const TOP = 20;
const SHOWN = 200;
const ORDERS = {
  wrong: ["Wrong most", (a, b) => Math.abs(b.ours - b.probability) - Math.abs(a.ours - a.probability)],
  ours: ["Our order", (a, b) => b.ours - a.ours],
  oracle: ["The oracle's order", (a, b) => b.probability - a.probability],
};

export async function showTruth(user, order = "wrong") {
  become(user);
  const isCurrent = newTurn();
  head(`Truth of ${user}`, "");
  waiting();
  try {
    const known = await get(`/v1/users/${encodeURIComponent(user)}/truth`);
    const scores = known.items.length
      ? await post("/v1/score", { user, items: known.items.map((item) => item.id) }) : { items: [] };
    if (!isCurrent()) return;
    named({ view: "truth", person: user });
    const items = known.items.map((item, place) => ({ ...item, ours: scores.items[place].score }));
    head(`Truth of ${user}`, "The drawn world knows how likely this person is to like a picture. No model has read it.", ["choice", "panel"]);
    $("panel").replaceChildren(summary(items));
    listBy(items, ORDERS[order] ? order : "wrong");
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

function listBy(items, order) {
  $("choice").replaceChildren(...Object.entries(ORDERS).map(([name, [label]]) => make("button", {
    type: "button", "aria-pressed": String(name === order), class: name === order ? "strong" : "",
    onclick: () => {
      listBy(items, name);
      [...$("choice").children].find((button) => button.textContent === label).focus();
    },
  }, label)));
  const sorted = [...items].sort(ORDERS[order][1]);
  present(sorted.slice(0, SHOWN), truthTile, { caption: 7.4 });
  say(items.length ? `${Math.min(SHOWN, items.length)} of ${items.length.toLocaleString("en")} pictures that are not in the history.` : "Nothing is known of this person.");
}

function truthTile(item) {
  const element = tile(item, { open });
  element.querySelector(".caption").append(bar("oracle", item.probability), bar("ours", item.ours));
  return element;
}

function bar(name, share) {
  const part = make("i", { class: name });
  part.style.width = percent(share);
  return make("span", { class: "share" }, make("span", {}, name), make("span", { class: "track" }, part), make("span", {}, percent(share)));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

// Figures of the whole list: errors, order, and the value of the first pictures by truth.
function summary(items) {
  const best = (order) => mean([...items].sort(ORDERS[order][1]).slice(0, TOP).map((item) => item.probability));
  const figures = [
    ["Mean difference", percent(mean(items.map((item) => Math.abs(item.ours - item.probability))))],
    ["Correlation", correlation(items).toFixed(2)],
    [`Truth of our first ${TOP}`, percent(best("ours"))],
    [`Of the oracle's first ${TOP}`, percent(best("oracle"))],
    ["Of any picture", percent(mean(items.map((item) => item.probability)))],
  ];
  return make("dl", { class: "figures" }, ...figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function correlation(items) {
  const [x, y] = [items.map((item) => item.ours), items.map((item) => item.probability)];
  const [mx, my] = [mean(x), mean(y)];
  const product = mean(x.map((value, n) => (value - mx) * (y[n] - my)));
  const spread = Math.sqrt(mean(x.map((value) => (value - mx) ** 2)) * mean(y.map((value) => (value - my) ** 2)));
  return spread ? product / spread : 0;
}
