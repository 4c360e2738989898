// Data source of a gallery that is a folder: answers as the server's, out of files that its export wrote.
//
// data/index.js has the people and ids; data/person-N.js one person's lists; data/items-N.js some items. Each
// calls TESSERA.take(name, content). A folder has no model: lists are those of the export, likes and hidden
// pictures last as long as the page.
import { useSource } from "./api.js";

const waiting = new Map();
const taken = new Map();
const changed = new Map(); // likes and hidden pictures by person, since the page was opened
globalThis.TESSERA = { take: (name, content) => {
  taken.set(name, content);
  waiting.get(name)?.(content);
} };

// Content of data/NAME.js; each file is loaded once.
function load(name) {
  if (!waiting.has(name)) {
    const loaded = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.onerror = () => reject(new Error(`data/${name}.js is missing from this folder.`));
      script.src = `data/${name}.js`;
      waiting.set(name, resolve);
      document.head.append(script);
    });
    taken.set(name, loaded);
  }
  return taken.get(name);
}

let index = null;
let places = null; // of items, by id

async function opened() {
  if (!index) {
    index = await load("index");
    places = new Map(index.items.map((id, place) => [id, place]));
  }
  return index;
}

async function entry(id) {
  const place = places.get(id);
  if (place === undefined) throw new Error(`The picture ${id} is not in this folder.`);
  return (await load(`items-${Math.floor(place / index.block)}`))[place % index.block];
}

async function person(id) {
  const place = index.people.findIndex((other) => other.id === id);
  if (place < 0) throw new Error(`The person ${id} is not in this folder, which has ${index.people.length} people.`);
  return load(`person-${place}`);
}

const changes = (user) => changed.get(user) ?? changed.set(user, { likes: [], hidden: new Set() }).get(user);

async function cards(ids) {
  return Promise.all(ids.map(async (id) => (await entry(id)).card));
}

async function users(query) {
  const limit = Number(query.get("limit") ?? 20);
  if (query.get("order") === "chance") {
    return { users: [...index.people].sort(() => Math.random() - 0.5).slice(0, limit) };
  }
  return { users: index.people.filter(({ id }) => id.startsWith(query.get("prefix") ?? "")).slice(0, limit) };
}

async function user(id) {
  const { likes } = await person(id);
  const more = changes(id);
  return { id, known: true, likes: [...await cards(more.likes), ...likes], hidden: [...more.hidden] };
}

// The list of the export that is nearest to a question's dials.
function chosen(lists, question) {
  const [name, factor] = Object.entries(question.dials ?? {})
    .sort((a, b) => Math.abs(Math.log(b[1] + 0.01)) - Math.abs(Math.log(a[1] + 0.01)))[0] ?? [null, 1];
  if (name && factor < 0.5 && lists[`${name}:0`]) return lists[`${name}:0`];
  if (name && factor > 1.5 && lists[`${name}:1`]) return lists[`${name}:1`];
  return question.diversity > 0.35 && lists.variety ? lists.variety : lists.own;
}

async function recommend(question) {
  const lists = question.user ? (await person(question.user)).lists : { own: index.popular };
  const { likes, hidden } = question.user ? changes(question.user) : { likes: [], hidden: new Set() };
  const out = new Set([...likes, ...hidden, ...question.filters?.exclude_items ?? []]);
  const include = Object.entries(question.filters?.include ?? {});
  const found = [];
  const isWanted = (card) => include.every(([column, values]) => [card[column] ?? []].flat().some((value) => values.includes(value)));
  const own = chosen(lists, question);
  const listed = new Set(own.map((item) => item.id));
  for (const item of own) {
    if (out.has(item.id)) continue;
    if (!include.length || isWanted((await entry(item.id)).card)) found.push(item);
  }
  if (include.length) { // pictures that are in no list, after those that are
    for (const id of index.items) {
      if (found.length >= question.k) break;
      const { card } = listed.has(id) || out.has(id) ? { card: null } : await entry(id);
      if (card && isWanted(card)) found.push({ ...card, weights: {} });
    }
  }
  return { items: found.slice(0, question.k).map((item, place) => ({ ...item, rank: place + 1 })) };
}

async function search({ words, k }) {
  if (!words) throw new Error("Searching by a picture needs the server: this is a folder.");
  const wanted = words.toLowerCase().split(/\s+/);
  const found = [];
  for (const id of index.items) {
    if (found.length >= k) break;
    const { card, text } = await entry(id);
    const said = [card.title, card.artist, text, ...card.tags].join(" ").toLowerCase();
    if (wanted.every((word) => said.includes(word))) found.push(card);
  }
  return { items: found };
}

function store({ events }) {
  for (const { user: id, item, kind } of events) {
    if (kind === "liked") changes(id).likes.unshift(item);
    if (kind === "hidden") changes(id).hidden.add(item);
  }
  return { stored: events.length, known: 0 };
}

// Rows of the map are the places of the items, which are all here if there is a map.
async function map(rows) {
  if (rows === null) return index.map;
  return { items: await cards(rows.split(",").map((row) => index.items[row - 1])) };
}

// Array of the map, out of base64: a layout, groups, or a person's taste.
async function array(address, Kind) {
  await opened();
  const { pathname, searchParams } = new URL(address, "file:///");
  const [kind, name] = pathname.split("/").slice(4).map(decodeURIComponent);
  const { by = null, bytes } = kind === "taste" ? (await person(searchParams.get("user"))).taste : await load(`map-${kind}-${name}`);
  const text = atob(bytes);
  const found = new Kind(Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer);
  found.by = by;
  return found;
}

async function get(address) {
  await opened();
  const { pathname, searchParams } = new URL(address, "file:///");
  const parts = pathname.split("/").slice(2).map(decodeURIComponent);
  if (parts[0] === "gallery") return index.offer;
  if (parts[0] === "map") return map(searchParams.get("rows"));
  if (parts[0] === "users") return parts[1] === undefined ? users(searchParams) : user(parts[1]);
  if (parts[0] === "items" && parts[1] === undefined) {
    const start = Number(searchParams.get("start"));
    return { total: index.items.length, items: await cards(index.items.slice(start, start + Number(searchParams.get("limit")))) };
  }
  const found = await entry(parts[1]);
  return parts[2] === "likers" ? found.likers : { ...found.card, text: found.text };
}

async function post(address, body) {
  await opened();
  const name = address.replace("/v1/", "");
  if (name === "recommend") return recommend(body);
  if (name === "similar") {
    const near = (await entry(body.item)).near[body.by];
    if (!near) throw new Error("It has no vector to compare.");
    return { items: await cards(near.slice(0, body.k)) };
  }
  if (name === "search") return search(body);
  if (name === "events") return store(body);
  throw new Error("Ranks and terms need the server: this is a folder of its lists.");
}

useSource({ get, post, array, picture: (id) => (index.pictures[places.get(id)] ? `pictures/${places.get(id)}.jpg` : "masked.svg") });
