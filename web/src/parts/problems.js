// What is wrong, in words, at the top of a page.

import { h } from "../dom.js";
import { time } from "../format.js";
import { jobLink, notice, shortId, workerLink } from "./bits.js";

/** The problems; `about` leaves out links to what the page is about itself. */
export function problems(list, store, about) {
  return h("div", { class: "problems", role: list.length ? "region" : null, "aria-label": list.length ? "Problems" : null, key: "problems" }, list.map((problem) =>
    notice(problem.severity, problem.message, " ",
      h("span", { class: "note" }, "since ", time(problem.since_at),
        problem.job && problem.job !== about && [" · ", jobLink(problem.job, nameOf(store, problem.job))],
        problem.worker && problem.worker !== about && [" · ", workerLink(problem.worker, store.cluster)]))));
}

const nameOf = (store, id) => store.jobs?.find((job) => job.id === id)?.name ?? shortId(id);
