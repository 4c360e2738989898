// A person: what was liked, what is recommended, the dials, and what a like or a hidden picture changes.
import { get, post } from "./api.js";
import { makeDials, meanWeights } from "./dials.js";
import { openPicture } from "./dialog.js";
import { newId, note, sendEvent, watch } from "./events.js";
import { $, addressOf, failed, grid, head, mark, named, newTurn, present, say, waiting } from "./page.js";
import { describe, image, legend, make, tile } from "./tiles.js";

const SHOWN = 48; // of a list at once; more follow at its end
const REORDERED = 120; // for new artists, in the page
const MORE = 240;
const MOST = 5000; // items that a request may exclude
const person = { user: null, likes: [], dials: null, filters: {}, items: [], hidden: new Set() };

export const newVisitor = () => `visitor-${newId()}`;
export const isLiked = (item) => person.likes.some((liked) => liked.id === item.id);
export const who = () => ({ user: person.user, dials: person.dials?.factors() ?? {}, isLiked, isHidden: (item) => person.hidden.has(item.id) });
export const become = (user) => Object.assign(person, { user, likes: [], dials: null, filters: {}, items: [], hidden: new Set() });

// Address of the list of an artist or a tag for the person shown.
export const filterAddress = (filter) => addressOf({ ...(person.user ? { person: person.user } : {}), ...filter });

// Open a picture large; `seen`: where it was shown.
export function open(item, seen = {}) {
  if (person.user) note({ user: person.user, item: item.id, kind: "opened", ...seen });
  return openPicture(item, who(), { like, hide, open, filterAddress });
}

// A tile of any list: it opens, it can be liked; pictures of a person's own list can be hidden too.
export const tileOf = (item) => tile(item, { open, like }, isLiked(item));

function recommendedTile(item, place) {
  const seen = { request_id: item.requestId ?? undefined, position: item.rank };
  const element = tile(item, { open: () => open(item, seen), like, hide }, isLiked(item));
  watch(element, { user: person.user, item: item.id, ...seen, position: item.rank ?? place + 1 });
  return element;
}

async function like(item, button) {
  button.disabled = true;
  try {
    person.user ??= newVisitor();
    await sendEvent(person.user, item.id, "liked");
    if (!isLiked(item)) person.likes.unshift(item);
    person.hidden.delete(item.id);
    button.setAttribute("aria-pressed", "true");
    if (person.dials) {
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

// Hide a picture: it goes, and does not come again.
export async function hide(item) {
  try {
    person.user ??= newVisitor();
    await sendEvent(person.user, item.id, "hidden");
    person.hidden.add(item.id);
    const place = person.items.findIndex((other) => other.id === item.id);
    if (place >= 0) {
      person.items.splice(place, 1);
      list();
      $("grid").querySelectorAll(".open")[Math.min(place, $("grid").children.length - 1)]?.focus({ preventScroll: true });
    }
    say(`Hidden: ${describe(item)}. It does not come again.`);
  } catch (error) {
    say(error.message, true);
  }
}

function showStrip() {
  $("liked").hidden = !person.likes.length;
  $("strip").replaceChildren(...person.likes.map((item) => {
    const picture = image(item);
    picture.loading = "lazy";
    return make("li", {}, make("button", { type: "button", onclick: () => open(item) }, picture));
  }));
}

const list = () => present(person.items, recommendedTile, { caption: 8.4, large: [0, 7], onend: more });

function question(k) {
  return {
    user: person.user, k, explain: true, dials: who().dials, filters: { include: person.filters },
    diversity: person.dials ? 0.7 * person.dials.variety() : 0,
  };
}

const withRequest = (found) => found.items.map((item) => Object.assign(item, { requestId: found.requestId }));

// Ask for the list as the dials are now; of several calls at a time the last one counts.
async function recommend(isCurrent = newTurn()) {
  const started = performance.now();
  const found = await post("/v1/recommend", question(person.dials?.wantsNew() ? REORDERED : SHOWN));
  if (!isCurrent()) return null;
  const artists = new Set(person.likes.map((item) => item.artist));
  const items = withRequest(found);
  person.items = (person.dials ? person.dials.order(items, artists) : items).slice(0, SHOWN);
  list();
  say(person.items.length ? "Best first." : "Nothing is left to recommend.");
  performance.measure("re-rank", { start: started, end: performance.now() });
  return found;
}

// More of the list, when its end is near; the items shown are excluded.
async function more() {
  const shown = person.items;
  if (shown.length < SHOWN || shown.length >= MOST) return;
  try {
    const asked = question(MORE);
    asked.filters.exclude_items = shown.map((item) => item.id);
    const found = await post("/v1/recommend", asked);
    if (shown !== person.items) return; // re-ranked meanwhile
    person.items.push(...withRequest(found).filter((item) => !person.hidden.has(item.id)));
    if (found.items.length) grid.extend({ length: person.items.length, at: (place) => person.items[place], need: () => {} });
    else say(`All ${person.items.length} pictures are here.`);
  } catch (error) {
    say(error.message, true);
  }
}

export async function showPerson(user, { title = user, filters = {}, hasDone = false } = {}) {
  become(user);
  person.filters = Object.fromEntries(Object.entries(filters).map(([name, value]) => [name, [value]]));
  const isCurrent = newTurn();
  head(title, "", []);
  waiting();
  try {
    const known = await get(`/v1/users/${encodeURIComponent(user)}`);
    if (!isCurrent()) return;
    person.likes = known.likes;
    person.hidden = new Set(known.hidden);
    const found = await recommend(isCurrent);
    if (!found) return; // something else was asked for meanwhile
    const count = known.likes.length;
    head(title, hasDone ? "Chosen by what you have just liked." : `${count} liked pictures, and what comes next.`, ["liked"]);
    showMarks(user, filters);
    showStrip();
    const weights = meanWeights(person.items);
    person.dials = makeDials($("dials"), weights, () => recommend().catch(failed));
    $("dials").append(legend(weights));
    named({ person: user, ...namesOf(filters) });
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

// Pictures of an artist, or with a tag, for nobody in particular.
export async function showFiltered(filters) {
  become(null);
  person.filters = Object.fromEntries(Object.entries(filters).map(([name, value]) => [name, [value]]));
  head(Object.values(filters).join(", "), "The most popular first.", []);
  waiting();
  const isCurrent = newTurn();
  try {
    if (await recommend(isCurrent)) showMarks(null, filters);
  } catch (error) {
    if (isCurrent()) failed(error);
  }
}

const namesOf = (filters) => Object.fromEntries(Object.entries(filters).map(([name, value]) => [name === "tags" ? "tag" : name, value]));

function showMarks(user, filters) {
  for (const [name, value] of Object.entries(filters)) {
    mark(name === "artist" ? `by ${value}` : value, () => {
      const { [name]: _, ...rest } = filters;
      location.hash = addressOf({ ...(user ? { person: user } : {}), ...namesOf(rest) });
    });
  }
}
