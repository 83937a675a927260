// Charts over time, drawn by uPlot on a canvas. Takes the place of src/charts.js when it is bundled.

import uPlot from "uplot";

export const built = true;

/** Pixels from top to bottom, axis included. */
const HEIGHT = 150;
const FONT = "11px system-ui, sans-serif";

/**
 * Puts a chart into `element` and returns `{ show(spec) }`, which draws `spec` there from then on:
 * `{ times: [s since 1970], series: [{ label, colour: CSS variable, values }], stacked, axis(value) → text, hover(index) }`.
 */
export function draw(element) {
  let chart;
  let spec;
  let drawnAs;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const show = (next) => {
    spec = next;
    const width = element.clientWidth;
    if (!width || !spec.times.length) return;
    const as = JSON.stringify([dark.matches, spec.stacked, spec.series.map((series) => series.label)]);
    if (chart && as === drawnAs) {
      chart.setData(data(spec));
      return;
    }
    chart?.destroy();
    drawnAs = as;
    chart = new uPlot(options(width, () => spec), data(spec), element);
  };

  new ResizeObserver(() => {
    if (chart) chart.setSize({ width: element.clientWidth, height: HEIGHT });
    else if (spec) show(spec);
  }).observe(element);
  dark.addEventListener("change", () => spec && show(spec));
  return { show };
}

/** Of stacked series each lies upon those before it; the last is drawn first, so that the others cover its lower part. */
function data({ times, series, stacked }) {
  if (!stacked) return [times, ...series.map(({ values }) => values)];
  const sums = [];
  let below = times.map(() => 0);
  for (const { values } of series) {
    below = below.map((sum, at) => sum + (values[at] ?? 0));
    sums.unshift(below);
  }
  return [times, ...sums];
}

function options(width, spec) {
  const { series, stacked } = spec();
  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue(name).trim();
  const drawn = stacked ? series.toReversed() : series;
  const axis = {
    stroke: colour("--muted"),
    font: FONT,
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "page" }, drag: { x: false, y: false }, y: false },
    scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
    axes: [
      { ...axis, size: 22, gap: 4, space: (_, __, from, to) => (to - from > 240 ? 48 : 68), values: (_, splits, __, ___, step) => splits.map((at) => clock(at, step)) },
      { ...axis, size: 52, gap: 6, space: 28, values: (_, splits) => splits.map((at) => spec().axis(at)) },
    ],
    series: [
      {},
      ...drawn.map((one) => ({
        label: one.label,
        stroke: colour(one.colour),
        fill: stacked ? colour(one.colour) : undefined,
        width: stacked ? 0 : 1.5,
        points: { show: false },
        spanGaps: false,
      })),
    ],
    hooks: { setCursor: [(chart) => spec().hover(chart.cursor.idx ?? undefined)] },
  };
}

const pad = (value) => String(value).padStart(2, "0");

function clock(seconds, step) {
  const at = new Date(seconds * 1000);
  const minutes = `${pad(at.getHours())}:${pad(at.getMinutes())}`;
  return step >= 60 ? minutes : `${minutes}:${pad(at.getSeconds())}`;
}
