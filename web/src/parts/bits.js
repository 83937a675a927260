// The small parts that all pages are made of.

import { h } from "../dom.js";
import { bytes, number } from "../format.js";

/** A part of a page under a heading of its own. `aside` stands at the heading's right. */
export function section(title, aside, ...content) {
  return h("section", { key: title },
    h("div", { class: "head" }, h("h2", {}, title), aside && h("div", { class: "aside" }, aside)), content);
}

/**
 * A table. Each column is `{ name, cell(row), number?, lesser?, key? }`: numbers stand right, lesser columns are left
 * out on a narrow screen.
 */
export function table(label, columns, rows, { empty = "None.", key } = {}) {
  if (!rows.length) return h("p", { class: "muted" }, empty);
  const kind = (column) => [column.number && "number", column.lesser && "lesser", column.wide && "wide"].filter(Boolean).join(" ") || null;
  return h("div", { class: "scroll", role: "region", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: kind(column) }, column.name)))),
      h("tbody", {}, rows.map((row, at) =>
        h("tr", { key: key ? key(row) : at }, columns.map((column) => h("td", { class: kind(column) }, column.cell(row, at))))))));
}

/** Something that the reader should know, in words. */
export function notice(severity, ...content) {
  return h("p", { class: `notice ${severity}` }, h("strong", {}, `${severity === "error" ? "Error" : "Warning"}: `), content);
}

/** Figures with their names: `[name, value, note?]`. */
export function figures(list) {
  return h("dl", { class: "figures" }, list.filter(Boolean).map(([name, value, note]) =>
    h("div", { key: name }, h("dt", {}, name), h("dd", {}, value, note && h("span", { class: "note" }, note)))));
}

/** Facts in a row: `[name, value]`. */
export function facts(list) {
  return h("dl", { class: "facts" }, list.filter(Boolean).map(([name, value]) =>
    h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))));
}

/** A state as a word with a mark of its colour. */
export const state = (name) => h("span", { class: `state ${name}` }, name);

/** How much of something is used, as a bar; the figures stand beside it. */
export function bar(used, all) {
  const part = all > 0 ? Math.min(1, used / all) : 0;
  return h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: { width: `${(part * 100).toFixed(1)}%` } }));
}

export const used = (some, all, unit = "") => [bar(some, all), ` ${number(some)} of ${number(all)}${unit}`];
export const usedBytes = (some, all) => [bar(some, all), ` ${bytes(some)} of ${bytes(all)}`];

const path = (folder, id) => `/${folder}/${encodeURIComponent(id)}`;
export const jobLink = (id, name) => h("a", { href: path("jobs", id) }, name || id);

/** A link to a worker, with the address that it is reached at in the title. */
export function workerLink(id, cluster) {
  const known = cluster?.workers?.find((worker) => worker.id === id);
  return h("a", { href: path("workers", id), title: known?.address ?? id }, shortId(id));
}

/** An id as far as people need it: UUIDs of one time begin alike, so it is their end that tells them apart. */
export const shortId = (id) => (id.length > 16 ? `…${id.slice(-8)}` : id);
