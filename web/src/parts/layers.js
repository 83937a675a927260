// Lays a plan out in layers: rows flow from the top down, each node as close above its reader as the graph allows.

import { group } from "../group.js";

/**
 * Places `nodes` (`{ id }`) joined by `edges` (`{ from, to }`, the way rows flow). Returns a map from id to
 * `{ column, layer }`: layer 0 is at the top, columns are numbers from 0 (halves and other fractions among them), and no
 * two nodes of a layer are closer than one column. What is not a graph without cycles is placed all the same.
 */
export function layers(nodes, edges) {
  const readers = lists(nodes, edges, "from", "to");
  const inputs = lists(nodes, edges, "to", "from");
  const below = depths(nodes, readers);
  const deepest = Math.max(0, ...below.values());
  const placed = new Map();
  let free = 0;

  // From each end of the plan upwards: leaves get the next free column, others stand in the middle of their inputs.
  const place = (id) => {
    const spot = { column: 0, layer: deepest - below.get(id) };
    placed.set(id, spot);
    const mine = inputs.get(id).filter((input) => !placed.has(input));
    mine.forEach(place);
    const columns = mine.map((input) => placed.get(input).column);
    spot.column = columns.length ? (columns[0] + columns.at(-1)) / 2 : free++;
  };
  for (const { id } of nodes) if (!readers.get(id).length && !placed.has(id)) place(id);
  for (const { id } of nodes) if (!placed.has(id)) place(id);
  spread(placed);
  return placed;
}

/** The longest way from each node to an end of the plan. */
function depths(nodes, readers) {
  const depth = new Map();
  const under = new Set();
  const measure = (id) => {
    if (depth.has(id)) return depth.get(id);
    if (under.has(id)) return 0;
    under.add(id);
    const found = Math.max(-1, ...readers.get(id).map(measure)) + 1;
    under.delete(id);
    depth.set(id, found);
    return found;
  };
  for (const { id } of nodes) measure(id);
  return depth;
}

/** Pushes nodes apart that share a place: only a graph that is no tree has such. */
function spread(placed) {
  const rows = group([...placed.values()], (spot) => spot.layer);
  for (const spots of rows.values()) {
    spots.sort((a, b) => a.column - b.column);
    for (let at = 1; at < spots.length; at += 1) spots[at].column = Math.max(spots[at].column, spots[at - 1].column + 1);
  }
}

function lists(nodes, edges, by, other) {
  const found = new Map(nodes.map(({ id }) => [id, []]));
  for (const edge of edges) if (found.has(edge[by]) && found.has(edge[other])) found.get(edge[by]).push(edge[other]);
  return found;
}
