/** How many objects of each kind are in a heap snapshot of V8: what a leak makes grow, whatever the noise in bytes. */

import { readFileSync } from 'node:fs';

interface Snapshot {
  readonly snapshot: {
    readonly meta: { readonly node_fields: readonly string[]; readonly node_types: readonly unknown[] };
  };
  readonly nodes: readonly number[];
  readonly strings: readonly string[];
}

/** Kinds of which each name is counted apart; of the others the name is content. */
const NAMED = new Set(['object', 'closure', 'native', 'array']);
/** What the engine makes as it learns the program. */
const ENGINES_OWN = new Set(['code', 'hidden', 'object shape', 'synthetic']);

/** Objects by "KIND NAME", without the engine's own. */
export function heapCensus(file: string): Map<string, number> {
  const { snapshot, nodes, strings } = JSON.parse(readFileSync(file, 'utf8')) as Snapshot;
  const { node_fields: fields, node_types: types } = snapshot.meta;
  const [typeAt, nameAt] = [fields.indexOf('type'), fields.indexOf('name')];
  const kinds = types[typeAt] as readonly string[];
  const census = new Map<string, number>();
  for (let at = 0; at < nodes.length; at += fields.length) {
    const kind = kinds[nodes[at + typeAt]!]!;
    if (ENGINES_OWN.has(kind)) continue;
    const key = NAMED.has(kind) ? `${kind} ${strings[nodes[at + nameAt]!]}` : kind;
    census.set(key, (census.get(key) ?? 0) + 1);
  }
  return census;
}

/** What there is `least` more of than before, most first. */
export function growth(
  before: ReadonlyMap<string, number>,
  after: ReadonlyMap<string, number>,
  least: number,
): string[] {
  return [...after]
    .map(([key, count]) => ({ key, more: count - (before.get(key) ?? 0) }))
    .filter(({ more }) => more >= least)
    .sort((a, b) => b.more - a.more)
    .map(({ key, more }) => `${more} ${key}`);
}
