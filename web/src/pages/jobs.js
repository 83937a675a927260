// All jobs, newest first, filtered and paged. The filter is in the address, so that a list can be linked to.

import { get } from "../api.js";
import { h } from "../dom.js";
import { section } from "../parts/bits.js";
import { jobTable } from "../parts/joblist.js";

const LIMIT = 50;
/** A page that is not what the master pushes asks again when jobs change, this often at most. */
const AGAIN_MS = 2000;
const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "stopped"];
const KINDS = ["batch", "streaming"];
const FIELDS = ["state", "kind", "name", "page_token"];

const asked = (store) => FIELDS.filter((field) => store.query.get(field)).map((field) => [field, store.query.get(field)]);

async function load(store) {
  const query = new URLSearchParams([["limit", LIMIT], ...asked(store)]);
  const { jobs, next_page_token } = await get(`/api/v1/jobs?${query}`);
  Object.assign(store, { jobs, next: next_page_token });
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
    const filtered = asked(store).some(([field]) => field !== "page_token");
    const empty = filtered ? "No job is like that." : "No job was submitted yet. Submit one: essaim submit JOB.sql";
    return [
      h("h1", {}, "Jobs"),
      filter(store),
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
    h("button", {}, "Filter"));
}
