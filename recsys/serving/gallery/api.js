// Calls of the server's routes. Every failure is an Error whose message is the server's own sentence.

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Try again in a moment.");
  }
  const body = await answer.json();
  if (answer.status === 401) location.assign("/gallery/signin.html");
  if (!answer.ok) {
    const error = new Error(body.detail ?? body.title ?? `Error ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  const asked = answer.headers.get("X-Request-ID");
  if (body && typeof body === "object") Object.defineProperty(body, "requestId", { value: asked });
  return body;
}

// Load an array of the server. `onprogress(share)`: of its bytes, where their number is known.
async function loadArray(path, Kind, onprogress) {
  let answer;
  try {
    answer = await fetch(path);
  } catch {
    throw new Error("The server does not answer. Try again in a moment.");
  }
  if (!answer.ok) {
    const { detail } = await answer.json();
    throw Object.assign(new Error(detail ?? `Error ${answer.status}`), { isGone: answer.status === 404 });
  }
  const total = Number(answer.headers.get("Content-Length"));
  const bytes = new Uint8Array(total);
  const reader = answer.body.getReader();
  let place = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    bytes.set(piece.value, place);
    place += piece.value.length;
    onprogress(place / total);
  }
  if (place !== total) throw new Error("The answer ended early. Try again in a moment.");
  const array = new Kind(bytes.buffer);
  array.by = answer.headers.get("X-Taste-By");
  return array;
}

const server = {
  get: (path) => ask(path),
  post: (path, body, options = {}) => ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    ...options,
  }),
  array: loadArray,
  picture: (id) => `/v1/items/${encodeURIComponent(id)}/picture`,
};
let source = server;

// Answer from elsewhere: an object with `get`, `post`, `array` and `picture` as the server's above.
export const useSource = (other) => { source = other; };
export const get = (path) => source.get(path);
export const post = (path, body, options) => source.post(path, body, options);
export const arrayOf = (path, Kind, onprogress = () => {}) => source.array(path, Kind, onprogress);
export const pictureOf = (id) => source.picture(id);
