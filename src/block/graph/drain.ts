/**
 * Drained sections: no I/O in a node and whatever uses it.
 *
 * Drain stops I/O, it protects no edges; that is the graph lock's work (graph/lock.ts). Beginning a section tells
 * every parent above the node to start no new requests, then waits until those in flight have finished. Sections nest:
 * a node counts them, and an edge remembers whether its parent has been told. When the graph changes meanwhile,
 * graph/change.ts calls `edgeAdded` and `edgeRemoved`, so a parent is always told exactly while a node below it is
 * drained, whichever way it came there.
 */

import { asMonitor } from './debug.ts';
import type { BlockChild, BlockNode } from './node.ts';

export interface DrainedSection {
  /** Ends the section: parents may send requests again. */
  end(): void;
}

function quiesce(node: BlockNode): void {
  node.quiesced++;
  if (node.quiesced > 1) return;
  node.driver.drainBegin?.(node);
  for (const edge of node.parents) quiesceParent(edge);
}

function unquiesce(node: BlockNode): void {
  node.quiesced--;
  if (node.quiesced > 0) return;
  // A parent that goes on at once may change the list.
  for (const edge of [...node.parents]) unquiesceParent(edge);
  node.driver.drainEnd?.(node);
}

function quiesceParent(edge: BlockChild): void {
  if (edge.quiesced) return;
  edge.quiesced = true;
  if (edge.parent.kind === 'root') edge.parent.root.drainedBegin();
  else quiesce(edge.parent.node);
}

function unquiesceParent(edge: BlockChild): void {
  if (!edge.quiesced) return;
  edge.quiesced = false;
  if (edge.parent.kind === 'root') edge.parent.root.drainedEnd();
  else unquiesce(edge.parent.node);
}

/** The edge is in the graph, or points to another node now: its parent rests exactly if that node is drained. */
export function edgeAdded(edge: BlockChild): void {
  if (edge.node.quiesced > 0) quiesceParent(edge);
  else unquiesceParent(edge);
}

/** The edge has left the graph: nothing below its parent is drained because of it. */
export function edgeRemoved(edge: BlockChild): void {
  unquiesceParent(edge);
}

/** What is still under way in `node` or above; null when all of it is at rest. */
function nextToWaitFor(node: BlockNode, seen: Set<BlockNode>): Promise<void> | null {
  if (seen.has(node)) return null;
  seen.add(node);
  if (node.inFlight > 0) return waitInHaste(node);
  for (const { parent } of node.parents) {
    const busy = parent.kind === 'root' ? parent.root.waitForRest() : nextToWaitFor(parent.node, seen);
    if (busy !== null) return busy;
  }
  return null;
}

/** Waits until nothing is in flight in `node`, and lets nothing below it wait for anything but I/O meanwhile. */
function waitInHaste(node: BlockNode): Promise<void> {
  return node.idle.wait().finally(hurry(node));
}

/**
 * Until the result is called, requests in `node` and below it wait for nothing but I/O. For whoever waits for them: a
 * filter below may hold them back for as long as its limits say.
 */
export function hurry(node: BlockNode): () => void {
  const hurried = new Set<BlockNode>();
  const visit = (at: BlockNode): void => {
    if (hurried.has(at)) return;
    hurried.add(at);
    at.hurried++;
    if (at.hurried === 1) at.driver.hurry?.(at);
    for (const edge of at.children) visit(edge.node);
  };
  asMonitor(() => visit(node));
  return () => {
    for (const at of hurried) at.hurried--;
  };
}

/** Begins a drained section of `node` and everything above it. Resolves when nothing is in flight there. */
export function drainedBegin(node: BlockNode): Promise<DrainedSection> {
  return asMonitor(() => beginDrain(node));
}

async function beginDrain(node: BlockNode): Promise<DrainedSection> {
  quiesce(node);
  // A node goes idle before its parents do: look again until all are idle at once.
  for (;;) {
    const busy = nextToWaitFor(node, new Set());
    if (busy === null) break;
    await busy;
  }
  let ended = false;
  return {
    end: () => {
      if (ended) return;
      ended = true;
      asMonitor(() => unquiesce(node));
    },
  };
}

/** Begins drained sections of several nodes, which end together. */
export async function drainedBeginAll(nodes: readonly BlockNode[]): Promise<DrainedSection> {
  // All are told before any is waited for: what one of them does must not keep another one busy.
  asMonitor(() => {
    for (const node of nodes) quiesce(node);
  });
  const sections: DrainedSection[] = [];
  for (const node of nodes) {
    sections.push(await drainedBegin(node));
    asMonitor(() => unquiesce(node));
  }
  return {
    end: () => {
      for (const section of sections) section.end();
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
