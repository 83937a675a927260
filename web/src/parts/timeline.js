// Task attempts over time, a row for each slot of each worker.

import { group } from "../group.js";
import { now } from "../clock.js";
import { h } from "../dom.js";
import { count, duration, number, rows } from "../format.js";
import { table, workerLink } from "./bits.js";

/** So many attempts are drawn, the latest; the table below counts all. */
const DRAWN = 1000;
const LANE = 14;
const GAP = 3;
const HEAD = 18;
/** Steps of the axis, ms: below a second tens, above it what clocks count in. */
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 3e4, 6e4, 12e4, 3e5, 6e5, 12e5, 18e5, 36e5, 72e5, 216e5, 432e5, 864e5];

/** The attempts (with `worker`, `started_at`, `ended_at`, `outcome`, …) as a picture and as a table by worker. */
export function timeline(all, cluster) {
  const attempts = all.filter((one) => one.started_at).map((one) => ({
    ...one,
    from: Date.parse(one.started_at),
    to: one.ended_at ? Date.parse(one.ended_at) : now(),
  }));
  if (!attempts.length) return h("p", { class: "muted" }, "No task has started yet.");
  attempts.sort((a, b) => a.from - b.from);
  const shown = attempts.slice(-DRAWN);
  const start = shown[0].from;
  const end = Math.max(start + 1, ...shown.map((one) => one.to));
  const workers = [...group(shown, (one) => one.worker)].sort(([a], [b]) => (a < b ? -1 : 1));
  return [
    shown.length < attempts.length && h("p", { class: "note" }, `The last ${number(DRAWN)} of ${number(attempts.length)} attempts are drawn.`),
    h("div", { class: "timeline" },
      workers.map(([worker, mine]) => lanes(worker, mine, start, end, cluster)),
      axis(start, end)),
    h("ul", { class: "legend" }, [...new Set(shown.map((one) => one.outcome))].sort().map((outcome) =>
      h("li", { key: outcome }, h("span", { class: `swatch ${outcome}` }), outcome))),
    byWorker(attempts, cluster),
  ];
}

function lanes(worker, attempts, start, end, cluster) {
  const free = [];
  const placed = attempts.map((one) => {
    let lane = free.findIndex((until) => until <= one.from);
    if (lane < 0) lane = free.length;
    free[lane] = one.to;
    return { one, lane };
  });
  const percent = (ms) => `${((ms / (end - start)) * 100).toFixed(3)}%`;
  const height = free.length * (LANE + GAP);
  return h("div", { key: worker, class: "lanes" },
    h("div", { class: "who" }, workerLink(worker, cluster), h("span", { class: "note" }, count(free.length, "slot"))),
    h("svg", { width: "100%", height, role: "img", "aria-label": `${count(attempts.length, "attempt")} in ${count(free.length, "slot")}` },
      placed.map(({ one, lane }) =>
        h("rect", {
          key: `${one.query}/${one.stage}/${one.task}/${one.attempt}`,
          class: one.outcome,
          x: percent(one.from - start),
          y: lane * (LANE + GAP),
          // What is too short to see is drawn a little longer.
          width: `max(2px, ${percent(one.to - one.from)})`,
          height: LANE,
        }, h("title", {}, said(one))))));
}

function said(one) {
  const reason = one.reason ? `\n${one.reason}` : "";
  const took = duration(one.duration_ms ?? one.to - one.from);
  return `Task ${one.task} of stage ${one.query}.${one.stage}, attempt ${one.attempt}: ${one.outcome}, ${took}, ${rows(one.rows_in)}\n${one.split}${reason}`;
}

/** Round steps from the first attempt's start. */
function axis(start, end) {
  const wanted = (end - start) / 5;
  const step = STEPS.find((step) => step >= wanted) ?? Math.ceil(wanted / 864e5) * 864e5;
  const ticks = [];
  for (let at = 0; at <= end - start; at += step) ticks.push(at);
  return h("div", { class: "lanes axis", key: "axis" }, h("div", { class: "who note" }, "since the first"),
    h("svg", { width: "100%", height: HEAD, "aria-hidden": "true" }, ticks.map((at) => {
      const x = `${((at / (end - start)) * 100).toFixed(3)}%`;
      const last = at / (end - start) > 0.9;
      return [
        h("line", { key: `line ${at}`, x1: x, x2: x, y1: 0, y2: 4 }),
        h("text", { key: `text ${at}`, x, y: 15, "text-anchor": at === 0 ? "start" : last ? "end" : "middle" }, at === 0 ? "0" : duration(at)),
      ];
    })));
}

const columns = (cluster) => [
  { name: "Worker", cell: ({ worker }) => workerLink(worker, cluster) },
  { name: "Attempts", number: true, cell: ({ mine }) => number(mine.length) },
  { name: "Running", number: true, cell: ({ mine }) => number(mine.filter((one) => one.outcome === "running").length) },
  { name: "Failed or lost", number: true, cell: ({ mine }) => number(mine.filter((one) => one.outcome === "failed" || one.outcome === "lost").length) },
  { name: "Rows read", number: true, lesser: true, cell: ({ mine }) => number(mine.reduce((all, one) => all + (one.rows_in ?? 0), 0)) },
  { name: "Median", number: true, cell: ({ took }) => duration(took[Math.floor(took.length / 2)]) },
  { name: "Slowest", number: true, cell: ({ took }) => duration(took.at(-1)) },
];

function byWorker(attempts, cluster) {
  const workers = [...group(attempts, (one) => one.worker)].map(([worker, mine]) => ({
    worker,
    mine,
    took: mine.map((one) => one.to - one.from).sort((a, b) => a - b),
  }));
  return table("Attempts by worker", columns(cluster), workers, { key: ({ worker }) => worker });
}
