// One job: how it fares in words, over time, by step, by task; its plan; what went wrong.

import { get } from "../api.js";
import { h } from "../dom.js";
import { bytes, number, time } from "../format.js";
import { facts, section, shortId, state, table } from "../parts/bits.js";
import { KEPT, addEpochs, outputs, overTime, sources, steps } from "../parts/epochs.js";
import { addEvents, eventList, loadEvents } from "../parts/events.js";
import { plan } from "../parts/plan.js";
import { problems } from "../parts/problems.js";
import { timeline } from "../parts/timeline.js";
import { sentence } from "../parts/words.js";

const path = (store) => `/api/v1/jobs/${encodeURIComponent(store.id)}`;

export default {
  title: (store) => store.job.name || shortId(store.job.id),
  updates: (store) => `?job=${encodeURIComponent(store.id)}`,

  async load(store) {
    const job = await get(path(store));
    const epochs = job.kind === "streaming" ? (await get(`${path(store)}/epochs?limit=${KEPT}`)).epochs : [];
    Object.assign(store, { job, epochs, events: await loadEvents({ job: job.id }) });
  },

  update(store, name, data) {
    if (name === "job") store.job = data;
    if (name === "epochs") store.epochs = addEpochs(store.epochs, data);
    if (name === "event") store.events = addEvents(store.events, data, (event) => event.job === store.job.id);
  },

  view(store) {
    const { job, cluster, epochs } = store;
    const last = epochs.at(-1) ?? job.last_epoch;
    const attempts = job.queries.flatMap((query) => query.stages.flatMap((stage) =>
      stage.attempts.map((attempt) => ({ ...attempt, query: query.index, stage: stage.id }))));
    const ofLastEpoch = job.kind === "streaming" && "of the last epoch";
    return [
      h("h1", {}, job.name || shortId(job.id), " ", state(job.state)),
      // Why it failed is said below.
      problems(cluster.problems.filter((problem) => problem.job === job.id && job.state !== "failed"), store, job.id),
      h("p", { class: job.state === "failed" ? "sentence failed" : "sentence" }, sentence({ ...job, last_epoch: last })),
      about(job),
      job.errors.length > 0 && section("Errors", null, errors(job)),
      job.kind === "streaming" && [
        overTime(epochs),
        h("div", { class: "columns", key: "epochs" }, h("div", {}, sources(last)), h("div", {}, steps(epochs), outputs(last))),
      ],
      section("Tasks over time", ofLastEpoch, timeline(attempts, cluster)),
      h("div", { class: "columns", key: "plan" },
        h("div", {}, job.queries.filter((query) => query.plan?.nodes?.length).map((query) =>
          section(job.queries.length > 1 ? `Plan of INSERT ${query.index + 1}` : "Plan", query.sink && h("code", {}, query.sink), plan(query.plan)))),
        h("div", {},
          section("Stages", ofLastEpoch, stages(job)),
          section("SQL", null, h("pre", { class: "scroll", role: "region", "aria-label": "SQL" }, h("code", {}, job.sql))))),
      section("Events", null, eventList(store.events, store, { withJob: false })),
    ];
  },
};

function about(job) {
  const { totals } = job;
  return facts([
    ["Kind", job.kind],
    ["Submitted", time(job.submitted_at)],
    ["Started", time(job.started_at)],
    job.ended_at && ["Ended", time(job.ended_at)],
    ["Rows read", number(totals?.input_rows ?? job.rows_in)],
    ["Rows written", number(totals?.output_rows ?? job.rows_out)],
    totals && ["Epochs", number(totals.epochs)],
    totals && ["Late rows", number(totals.late_rows)],
    totals && ["Skipped", number(totals.records_skipped)],
    totals && ["Dead-lettered", number(totals.records_dead_lettered)],
    totals?.lost > 0 && ["Offsets lost", number(totals.lost)],
    ["Generation", number(job.generation)],
    ["Id", h("code", {}, job.id)],
  ]);
}

function stages(job) {
  const columns = [
    { name: "Stage", cell: ({ query, stage }) => `${query.index}.${stage.id}` },
    { name: "Sink", wide: true, cell: ({ query }) => query.sink && h("code", {}, query.sink) },
    { name: "Runs as", lesser: true, cell: ({ query }) => query.execution },
    { name: "Tasks done", number: true, cell: ({ stage }) => `${number(stage.tasks_done)} of ${number(stage.tasks)}` },
    { name: "Running", number: true, cell: ({ stage }) => number(stage.tasks_running) },
    { name: "Rows read", number: true, cell: ({ stage }) => number(stage.rows_in) },
    { name: "Bytes read", number: true, lesser: true, cell: ({ stage }) => bytes(stage.bytes_in) },
    { name: "Skipped", number: true, lesser: true, cell: ({ stage }) => number(stage.records_skipped) },
    { name: "Dead-lettered", number: true, lesser: true, cell: ({ stage }) => number(stage.records_dead_lettered) },
  ];
  const rows = job.queries.flatMap((query) => query.stages.map((stage) => ({ query, stage })));
  return table("Stages", columns, rows, { empty: "Nothing of it runs on workers.", key: ({ query, stage }) => `${query.index}.${stage.id}` });
}

function errors(job) {
  const place = (error) => [error.table, error.topic && `${error.topic}[${error.partition ?? "?"}]`, error.offset !== null && error.offset !== undefined && `offset ${error.offset}`].filter(Boolean).join(" ");
  const columns = [
    { name: "At", cell: (error) => time(error.at, { ms: true }) },
    { name: "Where", wide: true, cell: (error) => h("code", {}, place(error)) },
    { name: "What", wide: true, cell: (error) => error.message },
  ];
  return table("Errors", columns, job.errors.toReversed());
}
