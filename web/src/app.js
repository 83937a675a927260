// The frame of every page: which page this address is, its data, its connection to the master, and drawing it.

import { Unauthorized, get, setToken } from "./api.js";
import { now } from "./clock.js";
import { h, patch } from "./dom.js";
import { duration, seconds } from "./format.js";
import { follow } from "./live.js";
import { drawWith, redraw } from "./redraw.js";
import { notice } from "./parts/bits.js";
import { errorText } from "./parts/words.js";
import job from "./pages/job.js";
import jobs from "./pages/jobs.js";
import overview from "./pages/overview.js";
import worker from "./pages/worker.js";
import workers from "./pages/workers.js";

const routes = [
  [/^\/$/, overview],
  [/^\/jobs$/, jobs],
  [/^\/jobs\/([^/]+)$/, job],
  [/^\/workers$/, workers],
  [/^\/workers\/([^/]+)$/, worker],
];

const [pattern, page] = routes.find(([pattern]) => pattern.test(location.pathname)) ?? routes[0];
const [, id] = (pattern.exec(location.pathname) ?? []).map(decodeURIComponent);

/** What the page knows: filled by its `load`, kept up by its `update`, shown by its `view`. */
const store = { id, query: new URLSearchParams(location.search), cluster: undefined };
const connection = { state: "connecting", since: Date.now(), reason: "" };
let failure;

/** Updates that came while the page asked for the whole, to be laid over it; nothing while it does not ask. */
let meanwhile;

async function load() {
  meanwhile = [];
  try {
    const [cluster] = await Promise.all([get("/api/v1/cluster"), page.load(store)]);
    store.cluster = cluster;
    store.loaded = true;
    failure = undefined;
    for (const [name, data] of meanwhile) update(name, data);
  } catch (error) {
    failure = error;
  }
  meanwhile = undefined;
  redraw();
}

function update(name, data) {
  if (name === "cluster") store.cluster = data;
  page.update?.(store, name, data);
}

function draw() {
  document.title = `${store.loaded ? page.title(store) : "Essaim"} – Essaim`;
  patch(document.getElementById("connection"), connected());
  patch(document.getElementById("main"), content());
  patch(document.getElementById("footer"), footer());
  // What scrolls must be reachable by keyboard; what does not would only be in the way.
  for (const part of document.querySelectorAll(".scroll")) {
    if (part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

function content() {
  if (failure instanceof Unauthorized) return tokenForm();
  if (store.loaded) return page.view(store);
  if (failure) return [h("h1", {}, "Essaim"), notice("error", errorText(failure))];
  return h("p", { class: "muted" }, "Loading…");
}

function connected() {
  if (connection.state === "live") return h("span", { class: "live", role: "status" }, "Live");
  if (connection.state === "connecting") return h("span", { class: "muted", role: "status" }, "Connecting…");
  // The seconds are outside the part that a screen reader speaks.
  return [
    h("span", { class: "lost", role: "status", title: connection.reason }, "Not connected"),
    h("span", { class: "lost" }, ` for ${seconds(Date.now() - connection.since)}`),
  ];
}

function footer() {
  const { cluster } = store;
  if (!cluster) return [];
  return [
    h("span", {}, `Essaim ${cluster.version}`),
    cluster.started_at && h("span", {}, `up for ${duration(now() - Date.parse(cluster.started_at))}`),
    cluster.state_dir && h("span", {}, "state in ", h("code", {}, cluster.state_dir)),
    h("a", { href: "/api/v1/openapi.json" }, "API"),
  ];
}

function tokenForm() {
  const submit = (event) => {
    event.preventDefault();
    setToken(new FormData(event.target).get("token"));
    location.reload();
  };
  return [
    h("h1", {}, "A token is needed"),
    h("p", {}, "This master shows its jobs to those who have a token that may read. ", failure.message),
    h("form", { class: "filter", onsubmit: submit },
      h("label", {}, "Token", h("input", { name: "token", type: "password", autocomplete: "off", required: true })),
      h("button", {}, "Show")),
  ];
}

for (const link of document.querySelectorAll("nav a")) {
  const path = link.getAttribute("href");
  const here = path === "/" ? location.pathname === "/" : location.pathname.startsWith(path);
  if (here) link.setAttribute("aria-current", "page");
}

drawWith(draw);
setInterval(redraw, 1000);
load();
follow(`/api/v1/updates${page.updates?.(store) ?? ""}`, {
  open() {
    const again = connection.state === "lost";
    connection.state = "live";
    // What happened meanwhile was not pushed.
    if (again) load();
    redraw();
  },
  update(name, data) {
    if (meanwhile) meanwhile.push([name, data]);
    else if (store.loaded) update(name, data);
    redraw();
  },
  lost(error) {
    if (connection.state !== "lost") connection.since = Date.now();
    connection.state = "lost";
    connection.reason = errorText(error);
    redraw();
  },
});
