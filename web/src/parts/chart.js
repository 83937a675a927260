// One chart with its title, what each line stands for, and its figures as text.

import { built, draw } from "../charts.js";
import { h } from "../dom.js";
import { redraw } from "../redraw.js";

const drawn = new WeakMap();
/** Where the pointer is, by title of the chart. */
const hovered = new Map();

/**
 * `times` in ms since 1970; `series` is a list of `{ label, colour, values }` as long as `times`; `value` writes a
 * figure with its unit, `axis` as short as an axis needs it.
 */
export function chart(title, { times, series, stacked = false, value, axis }) {
  const at = hovered.get(title) ?? times.length - 1;
  const spec = {
    times: times.map((ms) => ms / 1000),
    series,
    stacked,
    axis,
    hover(index) {
      if (hovered.get(title) === index) return;
      if (index === undefined) hovered.delete(title);
      else hovered.set(title, index);
      redraw();
    },
  };
  const owned = (element) => {
    if (!drawn.has(element)) drawn.set(element, draw(element));
    const last = `${times.length}/${times[0]}/${times.at(-1)}`;
    if (element.dataset.shown === last) return;
    element.dataset.shown = last;
    drawn.get(element).show(spec);
  };
  return h("figure", { class: "chart", key: title },
    h("figcaption", {},
      h("h3", {}, title),
      h("ul", { class: "legend" }, series.map((one) =>
        h("li", { key: one.label },
          h("span", { class: "swatch", style: { "background-color": `var(${one.colour})` } }),
          `${one.label} `, h("span", { class: "value" }, value(one.values[at])))))),
    built && h("div", { class: "plot", role: "img", "aria-label": summary(title, series, value), owned }));
}

/** What the lines show, for those who do not see them. */
function summary(title, series, value) {
  const parts = series.map(({ label, values }) => {
    const known = values.filter((one) => isFinite(one ?? NaN));
    return known.length ? `${label} between ${value(Math.min(...known))} and ${value(Math.max(...known))}` : `${label} unknown`;
  });
  return `${title} over time: ${parts.join("; ")}.`;
}

/** Said where charts are missing. */
export const withoutCharts = () =>
  !built && h("p", { class: "notice" }, "This build has no charts: ", h("code", {}, "make pages"),
    " before ", h("code", {}, "cargo build"), " puts them in. The figures are the same.");
