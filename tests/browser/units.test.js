// What the pages compute, without a browser: `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, duration, number, short } from "../../web/src/format.js";
import { parser } from "../../web/src/live.js";
import { layers } from "../../web/src/parts/layers.js";
import { sentence } from "../../web/src/parts/words.js";

const graph = (...pairs) => {
  const edges = pairs.map(([from, to]) => ({ from, to }));
  const nodes = [...new Set(pairs.flat())].map((id) => ({ id }));
  return { nodes, edges, spots: layers(nodes, edges) };
};

/** No two nodes at one place, and rows never flow upwards. */
function isDrawable({ nodes, edges, spots }) {
  for (const { from, to } of edges) assert.ok(spots.get(from).layer < spots.get(to).layer, `${from} is not above ${to}`);
  for (const a of nodes) {
    for (const b of nodes) {
      const [one, other] = [spots.get(a.id), spots.get(b.id)];
      if (a !== b && one.layer === other.layer) assert.ok(Math.abs(one.column - other.column) >= 1, `${a.id} lies on ${b.id}`);
    }
  }
}

test("a join's inputs stand side by side right above it", () => {
  const plan = graph(["scan", "filter"], ["filter", "join"], ["table", "join"], ["join", "sink"]);
  isDrawable(plan);
  assert.deepEqual(["scan", "filter", "table", "join", "sink"].map((id) => plan.spots.get(id).layer), [0, 1, 1, 2, 3]);
  assert.equal(plan.spots.get("join").column, 0.5);
});

test("a plan that is no tree is drawn without overlap", () => {
  isDrawable(graph(["scan", "a"], ["scan", "b"], ["a", "join"], ["b", "join"], ["scan", "c"], ["c", "sink2"], ["join", "sink1"]));
  isDrawable(graph(["1", "3"], ["2", "3"], ["1", "4"], ["2", "4"], ["3", "5"], ["4", "6"], ["2", "6"]));
});

test("a deep, a wide and an odd plan are placed", () => {
  const deep = Array.from({ length: 499 }, (_, at) => [at, at + 1]);
  assert.equal(graph(...deep).spots.get(499).layer, 499);
  isDrawable(graph(...Array.from({ length: 100 }, (_, at) => [`scan ${at}`, "union"])));
  assert.equal(graph(["a", "b"], ["b", "a"]).spots.size, 2);
  assert.equal(layers([], []).size, 0);
});

test("events are read however the text is cut", () => {
  const text = ': beat\n\nevent: cluster\ndata: {"slots":\ndata: 4}\n\ndata: [1]\r\n\r\nevent: empty\n\n';
  for (let length = 1; length <= text.length; length += 1) {
    const seen = [];
    const read = parser((name, data) => seen.push([name, data]));
    for (let at = 0; at < text.length; at += length) read(text.slice(at, at + length));
    assert.deepEqual(seen, [["cluster", { slots: 4 }], ["message", [1]]], `in pieces of ${length}`);
  }
});

test("figures have units", () => {
  assert.deepEqual([0.41, 38, 999.7, 1240, 59_990, 192_000, 7_500_000, 360_000_000].map(duration), ["0.41 ms", "38 ms", "1 s", "1.24 s", "1 min", "3 min 12 s", "2 h 5 min", "4 d 4 h"]);
  assert.deepEqual([0, 512, 1536, 5 * 2 ** 30].map(bytes), ["0 B", "512 B", "1.5 KiB", "5 GiB"]);
  assert.deepEqual([1_234_567, 3.14159, null, NaN].map(number), ["1,234,567", "3.14", "–", "–"]);
  assert.deepEqual([950, 12_345, 4_560_000].map(short), ["950", "12.3 k", "4.56 M"]);
});

test("a job says how it fares", () => {
  const at = (seconds) => new Date(1_700_000_000_000 + seconds * 1000).toISOString();
  const ran = { started_at: at(0), ended_at: at(90) };
  assert.equal(sentence({ state: "queued", queue_position: 1 }), "Next in the queue.");
  assert.equal(sentence({ state: "queued", queue_position: 3 }), "Queued: 2 jobs are before it.");
  assert.equal(sentence({ ...ran, state: "succeeded", rows_in: 1, rows_out: 20 }), "Succeeded after 1 min 30 s: 1 row read, 20 written.");
  assert.equal(sentence({ ...ran, state: "failed", message: "table t is gone" }), "Failed after 1 min 30 s: Table t is gone.");
  const source = { lag: 60_000, input_rows_per_second: 5000, processed_rows_per_second: 4000 };
  const streaming = { ...ran, state: "running", kind: "streaming", last_epoch: { epoch: 7, duration_ms: 38.2, retries: 0, sources: [source] } };
  assert.match(sentence(streaming), /Epoch 7 took 38\.2 ms\. 5,000 rows\/s come in\. It is 60,000 rows behind, 15 s at its present speed\.$/);
});
