// The master's clock: what is "12 s ago" must not depend on how well the reader's clock is set.

/** ms that the master's clock is ahead of the reader's; 0 while they agree within what an HTTP date can say. */
let ahead = 0;

/** Learns from an answer's Date header, which has whole seconds. */
export function learn(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (!isFinite(date)) return;
  const difference = date + 500 - Date.now();
  ahead = Math.abs(difference) > 2000 ? difference : 0;
}

/** ms since 1970-01-01 UTC, by the master's clock. */
export const now = () => Date.now() + ahead;
