// A query's plan as a graph: rows flow down, how many is written on each arrow.

import { h } from "../dom.js";
import { rows, short } from "../format.js";
import { layers } from "./layers.js";

// In CSS pixels. A node with its margin fits into a phone of 360.
const WIDTH = 282;
const COLUMN = 294;
const HEIGHT = 40;
const LAYER = 68;
const MARGIN = 4;
/** Characters that fit into a node's second line. */
const FITS = 40;

/** The plan as a picture, and as text for those who prefer it. */
export function plan({ nodes, edges }) {
  const spots = layers(nodes, edges);
  const x = (id) => MARGIN + spots.get(id).column * COLUMN;
  const y = (id) => MARGIN + spots.get(id).layer * LAYER;
  const width = Math.max(...nodes.map(({ id }) => x(id))) + WIDTH + MARGIN;
  const height = Math.max(...nodes.map(({ id }) => y(id))) + HEIGHT + MARGIN;
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const drawn = edges.filter(({ from, to }) => byId.has(from) && byId.has(to));
  return [
    h("div", { class: "scroll plan", role: "region", "aria-label": "Plan" },
      h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(nodes, drawn, byId) },
        h("defs", {}, h("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
          h("path", { d: "M0 0 8 4 0 8z" }))),
        drawn.map((edge) => arrow(edge, byId, x, y)),
        nodes.map((node) => box(node, x(node.id), y(node.id))))),
    h("details", { class: "asText" },
      h("summary", {}, "The plan as text"),
      h("ol", {}, nodes.map((node) =>
        h("li", { key: node.id }, h("strong", {}, node.name), ` ${node.detail ?? ""} `,
          h("span", { class: "note" }, `${where(node)}${isFinite(node.rows ?? NaN) ? `, ${rows(node.rows)} out` : ""}`))))),
  ];
}

const where = (node) => (node.where === "master" ? "on the master" : `on the workers, ${node.where}`);

function box(node, x, y) {
  const detail = node.detail ?? "";
  return h("g", { key: `node ${node.id}`, class: node.where === "master" ? "node master" : "node", transform: `translate(${x} ${y})` },
    h("title", {}, `${node.name} ${where(node)}\n${detail}`),
    h("rect", { width: WIDTH, height: HEIGHT, rx: 4 }),
    h("rect", { class: "side", width: 4, height: HEIGHT, rx: 2 }),
    h("text", { class: "name", x: 12, y: 16 }, node.name),
    h("text", { class: "where", x: WIDTH - 8, y: 16, "text-anchor": "end" }, node.where),
    h("text", { class: "detail", x: 12, y: 32 }, detail.length > FITS ? `${detail.slice(0, FITS - 1)}…` : detail));
}

function arrow({ from, to }, byId, x, y) {
  const [x1, y1, x2, y2] = [x(from) + WIDTH / 2, y(from) + HEIGHT, x(to) + WIDTH / 2, y(to) - 1];
  const middle = (y1 + y2) / 2;
  const source = byId.get(from);
  const crosses = source.where !== byId.get(to).where;
  const known = isFinite(source.rows ?? NaN);
  return h("g", { key: `edge ${from} ${to}`, class: crosses ? "edge crosses" : "edge" },
    h("path", { d: x1 === x2 ? `M${x1} ${y1}V${y2}` : `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`, "marker-end": "url(#arrow)" }),
    known && h("text", { x: (x1 + x2) / 2 + 8, y: middle + 4 }, h("title", {}, rows(source.rows)), source.rows < 10_000 ? rows(source.rows) : `${short(source.rows)} rows`));
}

function spoken(nodes, edges, byId) {
  const steps = edges.slice(0, 20).map(({ from, to }) => `${byId.get(from).name} to ${byId.get(to).name}`);
  return `The plan as a graph of ${nodes.length} operators: ${steps.join(", ")}.`;
}
