// Figures, durations and times as people read them, always with their unit.

import { h } from "./dom.js";
import { now } from "./clock.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
export const NONE = "–";

/** 1,234,567; below ten as much as three digits can say. */
export function number(value) {
  if (!isFinite(value ?? NaN)) return NONE;
  return Math.abs(value) >= 10 || Number.isInteger(value) ? whole.format(value) : precise.format(value);
}

/** 950, 12.3 k, 4.56 M: for narrow places. */
export function short(value) {
  if (!isFinite(value ?? NaN)) return NONE;
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (Math.abs(value) >= size) return `${precise.format(value / (unit === "k" ? 1e3 : size))} ${unit}`;
  }
  return number(value);
}

/** "1 row", "2,000 rows". */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

export const rows = (value) => count(value, "row");
export const rate = (value) => (isFinite(value ?? NaN) ? `${number(value)} rows/s` : NONE);

/** 512 B, 1.5 MiB. */
export function bytes(value) {
  if (!isFinite(value ?? NaN)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${value >= 1000 ? whole.format(value) : precise.format(value)} ${units[at]}`;
}

/** 0.4 ms, 38 ms, 1.24 s, 3 min 12 s, 2 h 5 min, 3 d 4 h. */
export function duration(ms) {
  if (!isFinite(ms ?? NaN)) return NONE;
  if (ms < 0) return `−${duration(-ms)}`;
  if (ms < 999.5) return `${precise.format(ms)} ms`;
  if (ms < 59_950) return `${precise.format(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  const [day, hour, minute] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600), Math.floor(seconds / 60)];
  if (hour < 1) return both(minute, "min", seconds % 60, "s");
  if (day < 1) return both(hour, "h", minute % 60, "min");
  return both(day, "d", hour % 24, "h");
}

const both = (large, unit, small, smaller) => (small ? `${large} ${unit} ${small} ${smaller}` : `${large} ${unit}`);

/** Durations that count up or down on the page, without digits that flicker: whole seconds. */
export const seconds = (ms) => duration(Math.max(0, Math.round(ms / 1000)) * 1000).replace(/^0 ms$/, "0 s");

/** ms between two times; the second may lie in the future of the first only. */
export const between = (from, to) => (from ? Math.max(0, (to ? Date.parse(to) : now()) - Date.parse(from)) : undefined);

/** A time in the reader's zone, with the UTC in the title. The date is left out when it is today. */
export function time(iso, { ms = false } = {}) {
  if (!iso) return NONE;
  const at = new Date(iso);
  return h("time", { datetime: iso, title: `${iso.replace("T", " ").replace("Z", "")} UTC` }, local(at, ms));
}

/** As `time`, but how long ago that is: "12 s ago". */
export function ago(iso) {
  if (!iso) return NONE;
  const at = new Date(iso);
  const title = `${local(at, true)} (${iso.replace("T", " ").replace("Z", "")} UTC)`;
  return h("time", { datetime: iso, title }, `${seconds(now() - at)} ago`);
}

const pad = (value, width = 2) => String(value).padStart(width, "0");

function local(at, ms) {
  const today = at.toDateString() === new Date(now()).toDateString();
  const day = today ? "" : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} `;
  const fraction = ms ? `.${pad(at.getMilliseconds(), 3)}` : "";
  return `${day}${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}${fraction}`;
}
