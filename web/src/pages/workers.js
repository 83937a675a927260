// All workers, and every task that runs now.

import { h } from "../dom.js";
import { count, number } from "../format.js";
import { jobLink, section, table, workerLink } from "../parts/bits.js";
import { problems } from "../parts/problems.js";
import { workerTable } from "../parts/workerlist.js";

export default {
  title: () => "Workers",
  async load() {},
  view(store) {
    const { cluster } = store;
    const tasks = cluster.workers.flatMap((worker) => (worker.tasks ?? []).map((task) => ({ ...task, worker: worker.id })));
    return [
      h("h1", {}, "Workers"),
      problems(cluster.problems.filter((problem) => problem.worker), store),
      section("Registered", `${number(cluster.slots_used)} of ${count(cluster.slots, "slot")} used`, workerTable(cluster.workers)),
      section("Who works for whom", null, byJob(tasks, cluster)),
    ];
  },
};

/** Tasks that run now, by job and worker: which job has which share of the cluster. */
function byJob(tasks, cluster) {
  const shares = new Map();
  for (const task of tasks) {
    const share = shares.get(task.job) ?? { job: task.job, name: task.job_name, slots: 0, workers: new Map() };
    share.slots += 1;
    share.workers.set(task.worker, (share.workers.get(task.worker) ?? 0) + 1);
    shares.set(task.job, share);
  }
  const columns = [
    { name: "Job", wide: true, cell: (share) => jobLink(share.job, share.name) },
    { name: "Slots", number: true, cell: (share) => number(share.slots) },
    { name: "On", wide: true, cell: (share) => [...share.workers].map(([worker, slots], at) => [at ? ", " : "", workerLink(worker, cluster), ` (${slots})`]) },
  ];
  return table("Slots by job", columns, [...shares.values()], { empty: "No task runs now.", key: (share) => share.job });
}
