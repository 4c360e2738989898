// Calls of the server's routes. Every failure is an Error whose message is the server's own sentence.

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Try again in a moment.");
  }
  const body = await answer.json();
  if (!answer.ok) {
    const error = new Error(body.detail ?? body.title ?? `Error ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return body;
}

export const get = (path) => call(path);

export const post = (path, body) =>
  call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

export const pictureOf = (id) => `/v1/items/${encodeURIComponent(id)}/picture`;

export const sendEvent = (user, item, kind) =>
  post("/v1/events", { events: [{ user, item, kind, id: crypto.randomUUID() }] });
