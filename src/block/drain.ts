/**
 * Drained sections: no I/O in a node and whatever uses it.
 *
 * Drain stops I/O, it protects no edges; that is the graph lock's work (graph-lock.ts). Beginning a section tells
 * every root parent above the node to start no new requests, then waits until those in flight have finished.
 * Sections nest. Which parents were told is remembered by the section, so that its end undoes exactly its begin,
 * also when edges changed in between.
 */

import type { BlockNode, RootParent } from './node.ts';

export interface DrainedSection {
  /** Ends the section: parents may send requests again. */
  end(): void;
}

function collect(node: BlockNode, nodes: Set<BlockNode>, roots: Set<RootParent>): void {
  if (nodes.has(node)) return;
  nodes.add(node);
  for (const edge of node.parents) {
    if (edge.parent.kind === 'node') collect(edge.parent.node, nodes, roots);
    else roots.add(edge.parent.root);
  }
}

/** Begins a drained section of `node` and everything above it. Resolves when nothing is in flight there. */
export async function drainedBegin(node: BlockNode): Promise<DrainedSection> {
  const nodes = new Set<BlockNode>();
  const roots = new Set<RootParent>();
  collect(node, nodes, roots);
  for (const root of roots) root.drainedBegin();
  for (const each of nodes) each.quiesced++;
  // A node goes idle before its parents do: look again until all are idle at once.
  for (;;) {
    const busy = [...nodes].find((each) => each.inFlight > 0);
    if (busy === undefined) break;
    await busy.idle.wait();
  }
  let ended = false;
  return {
    end: () => {
      if (ended) return;
      ended = true;
      for (const each of nodes) each.quiesced--;
      for (const root of roots) root.drainedEnd();
    },
  };
}

/** Runs `section` while `node` is drained. */
export async function drained<T>(node: BlockNode, section: () => Promise<T>): Promise<T> {
  const drain = await drainedBegin(node);
  try {
    return await section();
  } finally {
    drain.end();
  }
}
