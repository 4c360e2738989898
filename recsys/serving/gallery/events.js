// Events: what a person did with a picture (shown, opened, liked, hidden), sent to the server's event store.
import { post } from "./api.js";

const SHARE = 0.5; // of a tile that has to be in view ...
const SECONDS = 1; // ... for so long, to count as shown
const WAIT = 2000; // milliseconds in which events gather
const MOST = 200;
const seen = new Set();
const timers = new Map();
let waiting = [];
let timer = null;

// A random id; crypto.randomUUID is there in secure contexts only.
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Store one event now; resolves when it is durable.
export const sendEvent = (user, item, kind) => sendEvents([{ user, item, kind, id: newId() }]);

export const sendEvents = (events) => post("/v1/events", { events });

// Note an event that nobody waits for.
export function note(event) {
  waiting.push({ ...event, id: newId() });
  if (waiting.length >= MOST) flush();
  else timer ??= setTimeout(flush, WAIT);
}

// Send what waits. Events that find no server are lost: nothing in the page depends on them.
function flush() {
  clearTimeout(timer);
  timer = null;
  if (!waiting.length) return;
  const events = waiting;
  waiting = [];
  post("/v1/events", { events }, { keepalive: true }).catch(() => {});
}

addEventListener("pagehide", flush);
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && flush());

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    clearTimeout(timers.get(target));
    timers.delete(target);
    if (isIntersecting && target.isConnected) timers.set(target, setTimeout(() => shown(target), 1000 * SECONDS));
  }
}, { threshold: SHARE });

function shown(element) {
  timers.delete(element);
  observer.unobserve(element);
  const event = events.get(element);
  const key = `${event.user} ${event.item} ${event.request_id}`;
  if (seen.has(key) || !element.isConnected) return;
  seen.add(key);
  note({ ...event, kind: "shown" });
}

const events = new WeakMap();

// Note a tile as shown when it was in view for a second. `event`: {user, item, request_id, position}.
export function watch(element, event) {
  events.set(element, event);
  observer.observe(element);
}

// The tile has left the document.
export function unwatch(element) {
  observer.unobserve(element);
  clearTimeout(timers.get(element));
  timers.delete(element);
}
