// Asks the master. A master that wants a token gets the one that the reader gave, kept for this tab only.

import { learn } from "./clock.js";

const TOKEN = "essaim-token";
/** No answer of the API takes longer unless something is wrong. */
const PATIENCE_MS = 10_000;

/** The master wants a token, or another one. */
export class Unauthorized extends Error {}

export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

function headers(accept) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { accept, authorization: `Bearer ${token}` } : { accept };
}

/** The JSON at a path of the API. Throws an Error that says what the master said. */
export async function get(path) {
  const response = await request(path, "application/json", AbortSignal.timeout(PATIENCE_MS));
  return response.json();
}

/** A response whose body goes on until `signal` ends it. */
export const stream = (path, signal) => request(path, "text/event-stream", signal);

async function request(path, accept, signal) {
  const response = await fetch(path, { headers: headers(accept), signal, cache: "no-store" });
  learn(response);
  if (response.ok) return response;
  const said = await response.json().then((body) => body.error, () => undefined);
  const message = said ?? `the master answered ${response.status} ${response.statusText}`;
  if (response.status === 401 || response.status === 403) throw new Unauthorized(message);
  throw Object.assign(new Error(message), { status: response.status });
}
