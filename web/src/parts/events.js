// What happened, newest first: asked for once, then kept up as the master tells.

import { get } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { jobLink, shortId, workerLink } from "./bits.js";

/** So many are shown; older ones are left to the API. */
const SHOWN = 30;

/** The newest events, of one job or worker if `filter` says so (`{ job }`, `{ worker }`). */
export async function loadEvents(filter = {}) {
  const query = new URLSearchParams({ limit: SHOWN, ...filter });
  return (await get(`/api/v1/events?${query}`)).events;
}

/** The events with what an update brought: one event or a list of them. */
export function addEvents(events, data, wanted = () => true) {
  const known = new Set(events.map((event) => event.id));
  const fresh = (data.events ?? [data]).filter((event) => !known.has(event.id) && wanted(event));
  return [...events, ...fresh].slice(-SHOWN);
}

/** The list, with links to what each event is about unless the page is about that itself. */
export function eventList(events, store, { withJob = true, withWorker = true } = {}) {
  if (!events.length) return h("p", { class: "muted" }, "Nothing yet.");
  const nameOf = (id) => store.jobs?.find((job) => job.id === id)?.name ?? shortId(id);
  return h("ol", { class: "events" }, events.toReversed().map((event) =>
    h("li", { key: event.id, class: event.severity },
      time(event.at),
      h("span", { class: "kind" }, event.kind.replaceAll("_", " ")),
      h("span", { class: "message" }, event.message),
      h("span", { class: "about" },
        withJob && event.job && jobLink(event.job, nameOf(event.job)),
        withWorker && event.worker && workerLink(event.worker, store.cluster)))));
}
