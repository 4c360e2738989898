// Gallery: its header, and which view the address asks for.
import { get, post } from "./api.js";
import { showCatalogue } from "./catalogue.js";
import { showComparison } from "./compare.js";
import { newId, sendEvents } from "./events.js";
import { $, addressOf, asked, failed, head, markView, newTurn, present, say, waiting } from "./page.js";
import { become, newVisitor, showFiltered, showPerson, tileOf } from "./person.js";
import { make, MODALITIES, tile } from "./tiles.js";
import { showTruth } from "./truth.js";

const FOUND = 48;
const CHOSEN = 5;

// A new visitor: five of thirty varied pictures.
async function welcome() {
  const user = newVisitor();
  become(user);
  const isCurrent = newTurn();
  head("Which of these do you like?", `Tap ${CHOSEN} pictures; your recommendations follow at once.`, []);
  waiting();
  try {
    const found = await post("/v1/recommend", { k: 30, diversity: 0.9 });
    if (!isCurrent()) return;
    const chosen = new Set();
    const choose = (item) => {
      if (chosen.size === CHOSEN) return;
      const element = $("grid").querySelector(`[data-id="${CSS.escape(item.id)}"]`);
      if (!chosen.delete(item.id)) chosen.add(item.id);
      mark(element, chosen.has(item.id));
      say(`${chosen.size} of ${CHOSEN} chosen.`);
      if (chosen.size === CHOSEN) chosenAll(user, chosen).catch(failed);
    };
    present(found.items.map((item) => ({ ...item, weights: {} })), (item) => {
      const element = tile(item, { open: choose, like: choose });
      mark(element, chosen.has(item.id));
      return element;
    }, { caption: 4.2 });
    say(`0 of ${CHOSEN} chosen.`);
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

function mark(element, isChosen) {
  element.classList.toggle("chosen", isChosen);
  for (const button of element.querySelectorAll("button")) button.setAttribute("aria-pressed", String(isChosen));
}

async function chosenAll(user, chosen) {
  await sendEvents([...chosen].map((id) => ({ user, item: id, kind: "liked", id: newId() })));
  await showPerson(user, { title: "For you", hasDone: true });
}

async function search(question, title) {
  const isCurrent = newTurn();
  head(title, "", question.picture ? ["choice"] : []);
  if (question.picture) {
    const by = question.by ?? "semantic";
    $("choice").replaceChildren(...["semantic", "style"].map((name) => make("button", {
      type: "button", "aria-pressed": String(name === by), class: name === by ? "strong" : "",
      onclick: () => search({ ...question, by: name }, title),
    }, `By ${MODALITIES[name]}`)));
  }
  waiting();
  try {
    const found = await post("/v1/search", { ...question, k: FOUND });
    if (!isCurrent()) return;
    present(found.items, tileOf, { caption: 4.2 });
    say(found.items.length ? `${found.items.length} pictures, nearest first.` : "Nothing found.");
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

async function surprise() {
  const isCurrent = newTurn();
  try {
    const { users } = await get("/v1/users?order=chance&limit=1");
    if (!isCurrent()) return;
    if (users.length) await showPerson(users[0].id);
    else await welcome();
  } catch (error) {
    failed(error);
  }
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function truth(user) {
  const isCurrent = newTurn();
  try {
    const asked = user ?? (await get("/v1/users?order=chance&limit=1")).users[0]?.id;
    if (isCurrent()) await showTruth(asked);
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

// Show what this bundle and this server have to show.
async function offer() {
  try {
    const found = await get("/v1/gallery");
    for (const link of document.querySelectorAll("[data-needs]")) link.hidden = !found[link.dataset.needs];
  } catch (error) {
    say(error.message, true);
  }
}

// Show the view that the address asks for.
function route() {
  const { view, person, artist, tag } = asked();
  const filters = { ...(artist ? { artist } : {}), ...(tag ? { tags: tag } : {}) };
  document.getElementById("dialog").close();
  markView();
  if (view === "all") return showCatalogue();
  if (view === "truth") return truth(person);
  if (view === "compare") return showComparison(person);
  if (person) return showPerson(person, { filters });
  if (artist || tag) return showFiltered(filters);
  return surprise();
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (words) search({ words }, `\u201c${words}\u201d`);
});
$("upload").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    await search({ picture: await base64Of(file), by: "semantic" }, `Near to ${file.name}`);
  } catch (error) {
    failed(error);
  }
});
$("person").addEventListener("input", async (event) => {
  try {
    const { users } = await get(`/v1/users?limit=12&prefix=${encodeURIComponent(event.target.value)}`);
    $("people").replaceChildren(...users.map((user) => make("option", { value: user.id }, `${user.likes} likes`)));
  } catch (error) {
    say(error.message, true);
  }
});
$("pick").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = $("person").value.trim();
  if (!user) return;
  const { view } = asked();
  const address = addressOf({ ...(["truth", "compare"].includes(view) ? { view } : {}), person: user });
  if (location.hash === address) route();
  else location.hash = address;
});
$("signout").addEventListener("click", async () => {
  await fetch("/v1/session", { method: "DELETE" });
  location.assign("/gallery/signin.html");
});

$("surprise").addEventListener("click", () => ({ truth, compare: showComparison }[asked().view] ?? surprise)());
$("visitor").addEventListener("click", welcome);
addEventListener("hashchange", route);
offer();
route();
