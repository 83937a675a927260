// Updates as the master pushes them: server-sent events, taken up again whenever the connection breaks.
//
// Read with fetch rather than EventSource, which can send no token and does not say why it was refused.

import { Unauthorized, stream } from "./api.js";

/** The master sends a comment every 15 s at the latest. */
const SILENCE_MS = 35_000;
const RETRY_MS = [500, 1000, 2000, 5000];
/** A hidden page gives its connection back; the master has 64 of them, a browser six for each host. */
const HIDDEN_MS = 10_000;

/**
 * Reads updates until the page is closed. `on.open()` is called for each connection, `on.update(name, data)` for each
 * update, `on.lost(error)` when the connection is lost or cannot be made.
 */
export async function follow(path, on) {
  let failures = 0;
  for (;;) {
    await shown();
    const connection = new AbortController();
    const stopWatching = whenHidden(() => connection.abort());
    try {
      await read(path, connection, on, () => (failures = 0));
      on.lost(new Error("the master ended the connection"));
    } catch (error) {
      // A page that was hidden connects anew when it is shown, and says nothing of it.
      if (!document.hidden) on.lost(error);
      if (error instanceof Unauthorized) return;
    } finally {
      stopWatching();
      connection.abort();
    }
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  }
}

async function read(path, connection, on, opened) {
  let watchdog;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => connection.abort(new Error("the master is silent")), SILENCE_MS);
  };
  alive();
  try {
    const response = await stream(path, connection.signal);
    opened();
    on.open();
    const lines = parser(on.update);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      alive();
      lines(part.value);
    }
  } finally {
    clearTimeout(watchdog);
  }
}

/** Takes the text of an event stream in any pieces and calls `update(name, data)` for each event with JSON in it. */
export function parser(update) {
  let rest = "";
  let name = "message";
  let data = [];
  return (text) => {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) update(name, JSON.parse(data.join("\n")));
        name = "message";
        data = [];
      } else if (line.startsWith("event:")) {
        name = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5));
      }
    }
  };
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function shown() {
  if (!document.hidden) return undefined;
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
  });
}

function whenHidden(act) {
  let timer;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(act, HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  };
}
