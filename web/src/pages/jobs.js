// All jobs, newest first, filtered and paged. The filter is in the address, so that a list can be linked to. Queries of
// `essaim sql` that have ended are left out unless they are asked for, and jobs that run are shown at once, however old.

import { get } from "../api.js";
import { h } from "../dom.js";
import { section } from "../parts/bits.js";
import { jobTable } from "../parts/joblist.js";

const LIMIT = 50;
/** A page that is not what the master pushes asks again when jobs change, this often at most. */
const AGAIN_MS = 2000;
const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "stopped"];
const KINDS = ["batch", "streaming"];
const FIELDS = ["state", "kind", "name", "queries", "page_token"];
/** Jobs that run are shown up to so many. */
const RUNNING = 1000;

const asked = (store) => FIELDS.filter((field) => store.query.get(field)).map((field) => [field, store.query.get(field)]);

async function load(store) {
  const wanted = new Map([["queries", "false"], ...asked(store)]);
  const list = (more) => get(`/api/v1/jobs?${new URLSearchParams([...wanted, ...more])}`);
  const { jobs, next_page_token } = await list([["limit", LIMIT]]);
  const shown = new Set(jobs.map((job) => job.id));
  const mayRun = next_page_token && !wanted.has("state") && !wanted.has("page_token");
  const running = mayRun ? (await list([["state", "running"], ["limit", RUNNING]])).jobs : [];
  Object.assign(store, { jobs, next: next_page_token, older: running.filter((job) => !shown.has(job.id)) });
}

export default {
  title: () => "Jobs",
  load,

  update(store, name) {
    if (name !== "jobs" || store.asking) return;
    store.asking = true;
    // The frame shows when the master is out of reach; the list stays as it was.
    setTimeout(() => load(store).catch(() => {}).finally(() => (store.asking = false)), AGAIN_MS);
  },

  view(store) {
    const filtered = asked(store).some(([field]) => !["page_token", "queries"].includes(field));
    const empty = filtered ? "No job is like that." : "No job was submitted yet. Submit one: essaim submit JOB.sql";
    return [
      h("h1", {}, "Jobs"),
      filter(store),
      store.older.length > 0 && section("Running, submitted earlier", null, jobTable("Running jobs that were submitted earlier", store.older, "")),
      section("Newest first", null, jobTable("Jobs", store.jobs, empty)),
      h("nav", { class: "paging", "aria-label": "Pages of the list" },
        store.query.get("page_token") && h("a", { href: address(store, {}) }, "Newest"),
        store.next && h("a", { href: address(store, { page_token: store.next }) }, "Older")),
    ];
  },
};

/** This list, at another place. */
function address(store, place) {
  const query = new URLSearchParams(asked(store).filter(([field]) => field !== "page_token"));
  for (const [name, value] of Object.entries(place)) query.set(name, value);
  return query.size ? `/jobs?${query}` : "/jobs";
}

function filter(store) {
  const { query } = store;
  const choice = (name, values) =>
    h("select", { name }, h("option", { value: "" }, "any"), values.map((value) =>
      h("option", { value, initially: { selected: query.get(name) === value } }, value)));
  return h("form", { class: "filter", action: "/jobs", key: "filter", role: "search" },
    h("label", {}, "Name", h("input", { name: "name", type: "search", initially: { value: query.get("name") ?? "" } })),
    h("label", {}, "State", choice("state", STATES)),
    h("label", {}, "Kind", choice("kind", KINDS)),
    h("label", {}, "Ended queries", h("select", { name: "queries" },
      [["", "left out"], ["true", "listed"]].map(([value, text]) =>
        h("option", { value, initially: { selected: (query.get("queries") ?? "") === value } }, text)))),
    h("button", {}, "Filter"));
}
