// Jobs as a table: the same columns wherever jobs are listed.

import { h } from "../dom.js";
import { ago, between, duration, number, rate } from "../format.js";
import { bar, jobLink, state, table } from "./bits.js";
import { sum } from "./words.js";

/** How far a job is: of a streaming one its speed and lag, of a batch one its tasks. */
function progress(job) {
  if (job.state === "queued") return job.queue_position ? `number ${job.queue_position} in the queue` : "queued";
  if (job.kind === "streaming") {
    if (job.state !== "running" || !job.last_epoch) return job.totals ? `${number(job.totals.epochs)} epochs` : "";
    return `${rate(sum(job.last_epoch, "input_rows_per_second"))}, ${number(sum(job.last_epoch, "lag"))} behind`;
  }
  const { total = 0, done = 0, failed = 0 } = job.tasks ?? {};
  if (!total) return "";
  return [bar(done, total), ` ${number(done)} of ${number(total)} tasks`, failed > 0 && `, ${number(failed)} failed`];
}

const columns = [
  { name: "Job", wide: true, cell: (job) => jobLink(job.id, job.name) },
  { name: "State", cell: (job) => h("span", { title: job.message || null }, state(job.state)) },
  { name: "Kind", lesser: true, cell: (job) => job.kind },
  { name: "Progress", cell: progress },
  { name: "Rows read", number: true, lesser: true, cell: (job) => number(job.rows_in) },
  { name: "Rows written", number: true, lesser: true, cell: (job) => number(job.rows_out) },
  { name: "Submitted", lesser: true, cell: (job) => ago(job.submitted_at) },
  { name: "Ran for", number: true, cell: (job) => duration(between(job.started_at, job.ended_at)) },
];

export const jobTable = (label, jobs, empty) => table(label, columns, jobs, { empty, key: (job) => job.id });
