// What a job does and how it fares, as sentences.

import { between, count, duration, number, rate, rows } from "../format.js";

/** Input that takes longer than this to catch up with is worth a word. */
const BEHIND_MS = 5000;

/** A job's state in words; plain text. */
export function sentence(job) {
  const ran = duration(between(job.started_at, job.ended_at));
  const lasted = job.started_at ? ` after ${ran}` : "";
  switch (job.state) {
    case "queued":
      return `${place(job.queue_position)}${job.message ? ` ${stop(job.message)}` : ""}`;
    case "running":
      return job.kind === "streaming" ? streaming(job, ran) : batch(job, ran);
    case "succeeded":
      return `Succeeded${lasted}: ${rows(job.rows_in ?? 0)} read, ${number(job.rows_out ?? 0)} written.`;
    case "failed":
      return `Failed${lasted}: ${stop(job.message || "no reason is known")}`;
    case "cancelled":
      return `Cancelled${lasted}. What had not been committed was dropped.`;
    case "stopped":
      return `Stopped${lasted}, at the end of an epoch. Submitted again under its name, it goes on from there.`;
    default:
      return stop(job.state);
  }
}

function place(position) {
  if (!position) return "Queued.";
  return position === 1 ? "Next in the queue." : `Queued: ${count(position - 1, "job is", "jobs are")} before it.`;
}

function batch(job, ran) {
  const { total = 0, done = 0, running = 0 } = job.tasks ?? {};
  if (!total) return `Running for ${ran}.`;
  return `Running for ${ran}: ${number(done)} of ${count(total, "task")} done, ${number(running)} running now.`;
}

function streaming(job, ran) {
  const epoch = job.last_epoch;
  if (!epoch) return `Running for ${ran}; no epoch is committed yet.`;
  const retried = epoch.retries ? ` It was tried ${count(epoch.retries + 1, "time")}.` : "";
  return `Running for ${ran}. Epoch ${number(epoch.epoch)} took ${duration(epoch.duration_ms)}.${retried} ` +
    `${rate(sum(epoch, "input_rows_per_second"))} come in. ${behind(epoch)}`;
}

/** How far an epoch's end is behind the end of its sources, in words. */
export function behind(epoch) {
  const lag = sum(epoch, "lag");
  if (!lag) return "It has read all there is.";
  const speed = sum(epoch, "processed_rows_per_second");
  const late = speed > 0 ? (lag / speed) * 1000 : Infinity;
  if (late < BEHIND_MS) return `It keeps up, ${rows(lag)} behind.`;
  return isFinite(late) ? `It is ${rows(lag)} behind, ${duration(late)} at its present speed.` : `It is ${rows(lag)} behind.`;
}

/** A figure of an epoch's sources, added up. */
export const sum = (epoch, field) => (epoch?.sources ?? []).reduce((all, source) => all + (source[field] ?? 0), 0);

/** An error as a sentence. */
export function errorText(error) {
  if (error?.name === "TimeoutError") return "The master does not answer.";
  if (error instanceof TypeError) return "The master cannot be reached.";
  return stop(error?.message ?? String(error));
}

const stop = (text) => {
  const trimmed = text.trim();
  const begun = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
};
