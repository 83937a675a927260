// One worker: its slots and memory, its tasks, what happened to it.

import { get } from "../api.js";
import { h } from "../dom.js";
import { ago, time } from "../format.js";
import { facts, section, shortId, state, used, usedBytes } from "../parts/bits.js";
import { addEvents, eventList, loadEvents } from "../parts/events.js";
import { problems } from "../parts/problems.js";
import { taskTable } from "../parts/workerlist.js";

export default {
  title: (store) => `Worker ${shortId(store.id)}`,

  async load(store) {
    const path = `/api/v1/workers/${encodeURIComponent(store.id)}`;
    [store.worker, store.events] = await Promise.all([get(path), loadEvents({ worker: store.id })]);
  },

  update(store, name, data) {
    if (name === "cluster") store.worker = data.workers.find((worker) => worker.id === store.id) ?? { ...store.worker, state: "left", tasks: [] };
    if (name === "event") store.events = addEvents(store.events, data, (event) => event.worker === store.id);
  },

  view(store) {
    const { worker, cluster } = store;
    return [
      h("h1", {}, "Worker ", shortId(store.id), " ", state(worker.state)),
      problems(cluster.problems.filter((problem) => problem.worker === store.id), store, store.id),
      facts([
        ["Slots used", used(worker.slots_used, worker.slots)],
        ["Memory reserved", usedBytes(worker.memory_reserved_bytes, worker.memory_bytes)],
        ["Last heartbeat", ago(worker.last_heartbeat_at)],
        ["Registered", time(worker.registered_at)],
        ["Version", worker.version],
        ["Address", worker.address],
      ]),
      section("Tasks that run now", null, taskTable(worker.tasks ?? [])),
      section("Events", null, eventList(store.events, store, { withWorker: false })),
    ];
  },
};
