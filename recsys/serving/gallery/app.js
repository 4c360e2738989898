// Gallery: a person's likes and recommendations, a new visitor's first choice, and search.
import { get, post, sendEvent } from "./api.js";
import { makeDials, meanWeights } from "./dials.js";
import { openPicture } from "./dialog.js";
import { arrange, describe, image, make, MODALITIES, tile } from "./tiles.js";

const ASKED = 120; // reordered for new artists in the page
const SHOWN = 48;
const CHOSEN = 5;
const $ = (id) => document.getElementById(id);
const state = { user: null, likes: [], dials: null, turn: 0 };

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function waiting() {
  $("grid").replaceChildren(...Array.from({ length: 12 }, () => make("li", { class: "skeleton", "aria-hidden": "true" })));
  say("Loading\u2026");
}

function failed(error) {
  $("grid").replaceChildren();
  say(error.message, true);
}

function head(title, lead, sections = []) {
  [$("title").textContent, $("lead").textContent, document.title] = [title, lead, `${title} - Tessera gallery`];
  for (const id of ["liked", "dials", "choice"]) $(id).hidden = !sections.includes(id);
}

const who = () => ({ user: state.user, dials: state.dials?.factors() ?? {}, isLiked });
const open = (item) => openPicture(item, who(), like);
const isLiked = (item) => state.likes.some((liked) => liked.id === item.id);

function show(items, sizes = true) {
  const tiles = items.map((item, place) => {
    const element = tile(item, { open, like }, isLiked(item));
    element.classList.toggle("large", sizes && [0, 7].includes(place));
    return element;
  });
  arrange($("grid"), tiles);
}

async function like(item, button) {
  button.disabled = true;
  try {
    state.user ??= newVisitor();
    await sendEvent(state.user, item.id, "liked");
    if (!isLiked(item)) state.likes.unshift(item);
    button.setAttribute("aria-pressed", "true");
    if (state.dials) {
      showStrip();
      await recommend();
    }
    say(`Liked ${describe(item)}.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

function newVisitor() {
  return `visitor-${crypto.randomUUID()}`;
}

function showStrip() {
  $("liked").hidden = !state.likes.length;
  $("strip").replaceChildren(...state.likes.map((item) =>
    make("li", {}, make("button", { type: "button", onclick: () => open(item) }, image(item)))));
}

// Ask for the list as the dials are now; of several calls at a time the last one counts.
async function recommend() {
  const turn = ++state.turn;
  const started = performance.now();
  const body = { user: state.user, k: state.dials?.wantsNew() ? ASKED : SHOWN, explain: true, dials: who().dials };
  body.diversity = state.dials ? 0.7 * state.dials.variety() : 0;
  const found = await post("/v1/recommend", body);
  if (turn !== state.turn) return found;
  const artists = new Set(state.likes.map((item) => item.artist));
  const items = state.dials ? state.dials.order(found.items, artists) : found.items;
  show(items.slice(0, SHOWN));
  say(items.length ? `${Math.min(SHOWN, items.length)} pictures, best first.` : "Nothing is left to recommend.");
  performance.measure("re-rank", { start: started, end: performance.now() });
  return found;
}

async function showPerson(user, title = user, hasDone = false) {
  Object.assign(state, { user, likes: [], dials: null });
  const turn = ++state.turn;
  head(title, "", []);
  waiting();
  try {
    const person = await get(`/v1/users/${encodeURIComponent(user)}`);
    if (turn !== state.turn) return;
    state.likes = person.likes;
    const recommending = recommend();
    const asked = state.turn;
    const found = await recommending;
    if (asked !== state.turn) return; // something else was asked for meanwhile
    const count = person.likes.length;
    head(title, hasDone ? "Chosen by what you have just liked." : `${count} liked pictures, and what comes next.`, ["liked"]);
    showStrip();
    state.dials = makeDials($("dials"), meanWeights(found.items.slice(0, SHOWN)), () => recommend().catch(failed));
    history.replaceState(null, "", `#person=${encodeURIComponent(user)}`);
  } catch (error) {
    if (state.user === user) failed(error);
  }
}

// A new visitor: five of thirty varied pictures.
async function welcome() {
  Object.assign(state, { user: newVisitor(), likes: [], dials: null });
  const turn = ++state.turn;
  head("Which of these do you like?", `Tap ${CHOSEN} pictures; your recommendations follow at once.`, ["choice"]);
  $("choice").replaceChildren();
  waiting();
  try {
    const found = await post("/v1/recommend", { k: 30, diversity: 0.9 });
    if (turn !== state.turn) return;
    const chosen = new Set();
    let isDone = false;
    const count = () => say(`${chosen.size} of ${CHOSEN} chosen.`);
    const choose = async (item) => {
      if (isDone) return;
      const element = $("grid").querySelector(`[data-id="${CSS.escape(item.id)}"]`);
      if (!chosen.delete(item.id)) chosen.add(item.id);
      element.classList.toggle("chosen", chosen.has(item.id));
      element.querySelector(".like").setAttribute("aria-pressed", String(chosen.has(item.id)));
      count();
      isDone = chosen.size === CHOSEN;
      if (isDone) {
        const { user } = state;
        try {
          const events = [...chosen].map((id) => ({ user, item: id, kind: "liked", id: crypto.randomUUID() }));
          await post("/v1/events", { events });
          await showPerson(user, "For you", true);
        } catch (error) {
          failed(error);
        }
      }
    };
    const items = found.items.map((item) => ({ ...item, weights: {} }));
    arrange($("grid"), items.map((item) => tile(item, { open: choose, like: choose }, false)));
    count();
  } catch (error) {
    failed(error);
  }
}

async function search(question, title) {
  state.dials = null;
  const turn = ++state.turn;
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
    const found = await post("/v1/search", { ...question, k: SHOWN });
    if (turn !== state.turn) return;
    show(found.items, false);
    say(found.items.length ? `${found.items.length} pictures, nearest first.` : "Nothing found.");
  } catch (error) {
    if (turn === state.turn) failed(error);
  }
}

async function surprise() {
  try {
    const { users } = await get("/v1/users?order=chance&limit=1");
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
  if (user) showPerson(user);
});
$("surprise").addEventListener("click", surprise);
$("visitor").addEventListener("click", welcome);

const asked = new URLSearchParams(location.hash.slice(1)).get("person");
if (asked) showPerson(asked);
else surprise();
