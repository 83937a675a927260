// Puts a list's entries together by a key.

/** A map from each key to its entries, both in the order in which they come. */
export function group(list, key) {
  const groups = new Map();
  for (const entry of list) {
    const of = key(entry);
    if (groups.has(of)) groups.get(of).push(entry);
    else groups.set(of, [entry]);
  }
  return groups;
}
