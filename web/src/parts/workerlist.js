// Workers as a table, and the tasks that run on one.

import { h } from "../dom.js";
import { ago, duration, number } from "../format.js";
import { now } from "../clock.js";
import { jobLink, state, table, used, usedBytes, workerLink } from "./bits.js";

const columns = [
  { name: "Worker", cell: (worker) => workerLink(worker.id) },
  { name: "Address", lesser: true, cell: (worker) => worker.address },
  { name: "State", cell: (worker) => state(worker.state) },
  { name: "Slots used", cell: (worker) => used(worker.slots_used, worker.slots) },
  { name: "Memory reserved", cell: (worker) => usedBytes(worker.memory_reserved_bytes, worker.memory_bytes) },
  { name: "Heartbeat", lesser: true, cell: (worker) => ago(worker.last_heartbeat_at) },
  { name: "Registered", lesser: true, cell: (worker) => ago(worker.registered_at) },
  { name: "Version", lesser: true, cell: (worker) => worker.version },
];

export const workerTable = (workers) =>
  table("Workers", columns, workers, {
    empty: "No worker has registered. Start one: essaim worker --master http://HOST:7077",
    key: (worker) => worker.id,
  });

const taskColumns = [
  { name: "Job", wide: true, cell: (task) => jobLink(task.job, task.job_name) },
  { name: "Stage", number: true, cell: (task) => `${task.query}.${task.stage}` },
  { name: "Task", number: true, cell: (task) => number(task.task) },
  { name: "Attempt", number: true, lesser: true, cell: (task) => number(task.attempt) },
  { name: "Split", wide: true, cell: (task) => h("code", {}, task.split) },
  { name: "Runs for", number: true, cell: (task) => duration(Math.max(task.running_ms ?? 0, now() - Date.parse(task.started_at))) },
];

export const taskTable = (tasks) =>
  table("Tasks that run now", taskColumns, tasks, {
    empty: "No task runs here now.",
    key: (task) => `${task.job}/${task.query}/${task.stage}/${task.task}/${task.attempt}`,
  });
