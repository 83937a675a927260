// The cluster at a glance: what is wrong, what runs, what happened.

import { get } from "../api.js";
import { h } from "../dom.js";
import { bytes, count, number, rate } from "../format.js";
import { bar, figures, section } from "../parts/bits.js";
import { addEvents, eventList, loadEvents } from "../parts/events.js";
import { jobTable } from "../parts/joblist.js";
import { problems } from "../parts/problems.js";
import { workerTable } from "../parts/workerlist.js";
import { sum } from "../parts/words.js";

/** Jobs that have ended are shown up to so many. */
const RECENT = 8;
const open = (job) => job.state === "running" || job.state === "queued";

export default {
  title: () => "Overview",

  async load(store) {
    const [{ jobs }, events] = await Promise.all([get("/api/v1/jobs?queries=false&limit=100"), loadEvents()]);
    Object.assign(store, { jobs, events });
  },

  update(store, name, data) {
    if (name === "jobs") store.jobs = data.jobs;
    if (name === "event") store.events = addEvents(store.events, data);
  },

  view(store) {
    const { cluster, jobs, events } = store;
    const running = jobs.filter(open);
    const recent = jobs.filter((job) => !open(job)).slice(0, RECENT);
    return [
      h("h1", {}, "Overview"),
      problems(cluster.problems, store),
      glance(cluster, running),
      section("Running and queued", null, jobTable("Running and queued jobs", running, "No job runs or waits.")),
      h("div", { class: "columns" },
        section("Workers", h("a", { href: "/workers" }, "All workers"), workerTable(cluster.workers)),
        section("Ended lately", h("a", { href: "/jobs" }, "All jobs"), jobTable("Jobs that ended lately", recent, "No job has ended yet."))),
      section("Events", null, eventList(events, store)),
    ];
  },
};

function glance(cluster, running) {
  const active = cluster.workers.filter((worker) => worker.state === "active").length;
  const others = cluster.workers.length - active;
  const total = (field) => cluster.workers.reduce((all, worker) => all + (worker.state === "lost" ? 0 : worker[field]), 0);
  const input = running.reduce((all, job) => all + sum(job.last_epoch, "input_rows_per_second"), 0);
  const states = ["running", "queued", "succeeded", "failed", "cancelled", "stopped"].filter((state) => cluster.jobs[state] > 0);
  return figures([
    ["Health", cluster.problems.length ? count(cluster.problems.length, "problem") : "Good", cluster.problems.length ? null : "nothing is wrong"],
    ["Workers", count(active, "active", "active"), others ? `${number(others)} draining or lost` : null],
    ["Slots used", [`${number(cluster.slots_used)} of ${number(cluster.slots)}`, bar(cluster.slots_used, cluster.slots)],
      cluster.tasks_waiting ? count(cluster.tasks_waiting, "task waits", "tasks wait") : null],
    ["Workers' memory", [`${bytes(total("memory_reserved_bytes"))} of ${bytes(total("memory_bytes"))}`, bar(total("memory_reserved_bytes"), total("memory_bytes"))]],
    ["Streams read", rate(input)],
    ["Jobs", states.length ? h("ul", { class: "counts" }, states.map((state) =>
      h("li", {}, h("a", { href: `/jobs?state=${state}&queries=true` }, `${number(cluster.jobs[state])} ${state}`)))) : "none yet"],
  ]);
}
