// A streaming job over time: what came in, how long it took and where, how far behind it is.

import { h } from "../dom.js";
import { ago, bytes, duration, number, rate, rows, short, time } from "../format.js";
import { bar, section, table } from "./bits.js";
import { chart, withoutCharts } from "./chart.js";
import { behind, sum } from "./words.js";

/** Epochs that a page keeps and draws. */
export const KEPT = 600;
/** In the order in which an epoch takes them. What it did besides is "other". */
const STEPS = [
  ["latest_offsets", "ask for offsets"],
  ["write_offsets", "write offsets"],
  ["static_tables", "read static tables"],
  ["tasks", "tasks"],
  ["process", "merge and commit"],
  ["checkpoint", "wait for checkpoint"],
];

/** The known epochs with what an update brought. */
export function addEpochs(epochs, data) {
  const last = epochs.at(-1)?.epoch ?? -1;
  const fresh = (data.epochs ?? [data]).filter((epoch) => epoch.epoch > last);
  return [...epochs, ...fresh].slice(-KEPT);
}

/** Charts of the epochs. */
export function overTime(epochs) {
  if (!epochs.length) return section("Over time", null, h("p", { class: "muted" }, "No epoch is committed yet."));
  const times = epochs.map((epoch) => Date.parse(epoch.started_at));
  const pick = (field) => epochs.map((epoch) => sum(epoch, field));
  const line = (label, colour, values) => [{ label, colour, values }];
  const ofRows = { times, value: rows, axis: short };
  const ofRates = { times, value: rate, axis: short };
  const ofTime = { times, value: duration, axis: duration };
  const parts = durations(epochs);
  const stacked = parts.map(({ label, values }, at) => ({ label, values, colour: `--chart-${at + 1 < parts.length ? at + 1 : 7}` }));
  return section("Over time", `the last ${number(epochs.length)} epochs`,
    withoutCharts(),
    h("div", { class: "charts" },
      chart("Input", { ...ofRates, series: line("arrive", "--chart-1", pick("input_rows_per_second")) }),
      chart("Processing", { ...ofRates, series: line("while an epoch ran", "--chart-2", pick("processed_rows_per_second")) }),
      chart("Latency", { ...ofTime, series: line("from an epoch's start to its commit", "--chart-3", epochs.map((epoch) => epoch.duration_ms)) }),
      chart("Lag", { ...ofRows, series: line("behind the newest offset", "--chart-4", pick("lag")) }),
      chart("Watermark", { ...ofTime, series: line("behind the clock", "--chart-5", epochs.map(watermarkDelay)) }),
      chart("Duration by step", { ...ofTime, stacked: true, series: stacked })));
}

/** ms from the least watermark of an epoch's sources to its start; nothing without a watermark. */
function watermarkDelay(epoch) {
  const known = epoch.sources.map((source) => Date.parse(source.watermark_at ?? "")).filter(isFinite);
  return known.length ? Date.parse(epoch.started_at) - Math.min(...known) : null;
}

function durations(epochs) {
  const known = STEPS.filter(([name]) => epochs.some((epoch) => name in (epoch.durations_ms ?? {})));
  const steps = known.map(([name, label]) => ({ label, values: epochs.map((epoch) => epoch.durations_ms[name] ?? 0) }));
  const rest = epochs.map((epoch, at) => Math.max(0, epoch.duration_ms - steps.reduce((all, step) => all + step.values[at], 0)));
  return [...steps, { label: "other", values: rest }];
}

/** Where an epoch's time goes, in figures. */
export function steps(epochs) {
  if (!epochs.length) return null;
  const columns = [
    { name: "Step of an epoch", cell: ({ label }) => label },
    { name: "Last", number: true, cell: ({ values }) => duration(values.at(-1)) },
    { name: "Median", number: true, cell: ({ sorted }) => duration(sorted[Math.floor(sorted.length / 2)]) },
    { name: "Slowest", number: true, cell: ({ sorted }) => duration(sorted.at(-1)) },
  ];
  const sorted = durations(epochs).map((step) => ({ ...step, sorted: step.values.toSorted((a, b) => a - b) }));
  return section("Where the time goes", null, table("Duration by step", columns, sorted, { key: ({ label }) => label }));
}

/** Watermark and lag of each source, partition by partition. */
export function sources(epoch) {
  if (!epoch) return null;
  return section("Sources", behind(epoch), epoch.sources.map((source) => {
    const parts = Object.keys(source.end ?? {}).sort(byNumber).map((name) => partition(name, source));
    const most = Math.max(1, ...parts.map((part) => part.lag));
    const columns = [
      { name: "Partition", cell: (part) => h("code", {}, part.name) },
      { name: "Read from", number: true, lesser: true, cell: (part) => number(part.start) },
      { name: "Read up to", number: true, cell: (part) => number(part.end) },
      { name: "Newest", number: true, lesser: true, cell: (part) => number(part.latest) },
      { name: "Lag", number: true, cell: (part) => [bar(part.lag, most), ` ${rows(part.lag)}`] },
      { name: "Watermark", lesser: true, cell: (part) => part.watermark && ago(part.watermark) },
    ].filter(({ name }) => name !== "Watermark" || parts.some((part) => part.watermark));
    return h("div", { key: source.table },
      h("h3", {}, source.table),
      h("p", {}, source.watermark_at ? ["Watermark ", time(source.watermark_at), ", ", ago(source.watermark_at), ". "] : "No watermark yet. ",
        `${rate(source.input_rows_per_second)} arrive; ${rows(source.lag)} behind.`,
        source.lost > 0 && h("strong", {}, ` ${number(source.lost)} offsets were lost: the source deleted them before they were read.`)),
      table(`Partitions of ${source.table}`, columns, parts, { key: (part) => part.name }));
  }));
}

function partition(name, source) {
  const [end, latest] = [source.end[name], source.latest?.[name]];
  return { name, start: source.start?.[name], end, latest, lag: Math.max(0, (latest ?? end) - end), watermark: source.watermarks?.[name] };
}

const byNumber = (a, b) => a.localeCompare(b, "en", { numeric: true });

/** What each INSERT keeps and wrote. */
export function outputs(epoch) {
  const columns = [
    { name: "Sink", wide: true, cell: (query) => h("code", {}, query.sink) },
    { name: "Mode", lesser: true, cell: (query) => query.output_mode },
    { name: "Written last", number: true, cell: (query) => rows(query.output_rows) },
    { name: "Late", number: true, cell: (query) => rows(query.late_rows) },
    { name: "State", number: true, cell: (query) => `${rows(query.state_rows)}, ${bytes(query.state_bytes)}` },
    { name: "Watermark", cell: (query) => time(query.watermark_at) },
  ];
  return epoch && section("Sinks and state", null, table("Sinks and state", columns, epoch.queries, { key: (query) => query.index }));
}
