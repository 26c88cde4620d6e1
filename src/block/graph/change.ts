/**
 * Graph changes: edges are put in, taken out and redirected, all or nothing.
 *
 * `changeGraph` is the one way to do it. It drains what the change touches, takes the graph write lock, runs the
 * change, recomputes permissions, and undoes everything when anything refuses. What is built from it: replacing a
 * node, putting a node on top of another one, and taking a filter out again.
 *
 * Invariants:
 * - A node that loses or gets a child has no request in flight, so no request ever sees two versions of its edges.
 *   That is what allows a request to give the lock back while it waits for something other than I/O.
 * - The graph has no cycles.
 */

import { assert, BlockError } from '../../errors/error.ts';
import type { BlockDriver } from '../contract/driver.ts';
import type { DriverOptions } from '../contract/image.ts';
import { Perm, type PermissionPair, Role } from '../contract/request.ts';
import type { BlockLayer } from '../layer.ts';
import { filteredChild } from './chain.ts';
import { asMonitor } from './debug.ts';
import { drainedBeginAll, edgeAdded, edgeRemoved } from './drain.ts';
import { coRefreshLength } from './length.ts';
import { type BlockChild, BlockNode, type EdgeParent, refreshLimits } from './node.ts';
import { refreshPermissions } from './permissions.ts';

/** What a change may do. Valid inside the callback of `changeGraph` only. */
export interface GraphChange {
  /** Puts in an edge. A node parent decides about its permissions itself; `pair` is for root parents. */
  attach(parent: EdgeParent, name: string, roles: number, node: BlockNode, pair?: PermissionPair): BlockChild;
  /** Takes out an edge. Throws when it is frozen. */
  detach(edge: BlockChild): void;
  /** Lets the edge point to another node. Throws when it is frozen or would close a cycle. */
  redirect(edge: BlockChild, node: BlockNode): void;
  /** What the node wants of its children has changed. */
  refresh(node: BlockNode): void;
  /** What the callback has changed besides edges: `commit` runs when everything is settled, `undo` when it is not. */
  also(step: { readonly commit?: () => void; readonly undo?: () => void }): void;
}

/** A parent without users takes nothing; what it takes later follows from theirs. */
const NOTHING: PermissionPair = { perm: 0, shared: Perm.all };

/**
 * Changes the graph. `drain`: the nodes whose children or parents change; new nodes need not be listed. On error every
 * edge and permission is as before. Nodes that nobody uses any more are closed afterwards, the newest first.
 */
export function changeGraph<T>(
  layer: BlockLayer,
  drain: readonly BlockNode[],
  change: (graph: GraphChange) => T,
): Promise<T> {
  return asMonitor(() => drainAndChange(layer, drain, change));
}

async function drainAndChange<T>(
  layer: BlockLayer,
  drain: readonly BlockNode[],
  change: (graph: GraphChange) => T,
): Promise<T> {
  const section = await drainedBeginAll(drain);
  const touched = new Set<BlockNode>();
  const left = new Set<BlockNode>();
  let result: { readonly value: T };
  try {
    result = await layer.graphLock.withWrite(() => ({ value: apply(change, touched, left) }));
    await refreshAbove(layer, touched);
  } finally {
    section.end();
  }
  await closeAll(layer, left);
  return result.value;
}

/** Closes those of the nodes that nobody uses. All of them, then throws the first error there was. */
async function closeAll(layer: BlockLayer, nodes: Iterable<BlockNode>): Promise<void> {
  let failure: { readonly error: unknown } | undefined;
  for (const node of nodes) {
    try {
      await layer.closeIfUnused(node);
    } catch (error) {
      failure ??= { error };
    }
  }
  if (failure !== undefined) throw failure.error;
}

function apply<T>(change: (graph: GraphChange) => T, touched: Set<BlockNode>, left: Set<BlockNode>): T {
  const undo: (() => void)[] = [];
  const commit: (() => void)[] = [];
  const touch = (edge: BlockChild): void => {
    if (edge.parent.kind === 'node') touched.add(edge.parent.node);
    touched.add(edge.node);
  };
  const graph: GraphChange = {
    attach(parent, name, roles, node, pair = NOTHING) {
      if (parent.kind === 'node') checkChildChange(parent.node, name, node);
      checkActive(parent, name, node);
      const edge: BlockChild = {
        name,
        roles,
        parent,
        node,
        perm: pair.perm,
        shared: pair.shared,
        quiesced: false,
        frozen: 0,
      };
      node.parents.push(edge);
      if (parent.kind === 'node') parent.node.children.push(edge);
      edgeAdded(edge);
      undo.push(() => {
        takeOut(edge);
        edgeRemoved(edge);
      });
      touch(edge);
      return edge;
    },
    detach(edge) {
      checkNotFrozen(edge);
      if (edge.parent.kind === 'node') checkChildChange(edge.parent.node, edge.name, null);
      const putBack = takeOut(edge);
      edgeRemoved(edge);
      undo.push(() => {
        putBack();
        edgeAdded(edge);
      });
      touch(edge);
      left.add(edge.node);
    },
    redirect(edge, node) {
      if (edge.node === node) return;
      checkNotFrozen(edge);
      if (edge.parent.kind === 'node') checkChildChange(edge.parent.node, edge.name, node);
      checkActive(edge.parent, edge.name, node);
      const before = edge.node;
      const at = before.parents.indexOf(edge);
      touch(edge);
      left.add(before);
      before.parents.splice(at, 1);
      edge.node = node;
      node.parents.push(edge);
      edgeAdded(edge);
      touch(edge);
      undo.push(() => {
        remove(node.parents, edge);
        edge.node = before;
        before.parents.splice(at, 0, edge);
        edgeAdded(edge);
      });
    },
    refresh: (node) => void touched.add(node),
    also(step) {
      if (step.commit !== undefined) commit.push(step.commit);
      if (step.undo !== undefined) undo.push(step.undo);
    },
  };
  try {
    const value = change(graph);
    refreshPermissions([...touched]);
    for (const step of commit) step();
    return value;
  } catch (error) {
    for (const step of undo.reverse()) step();
    throw error;
  }
}

/** A node's children change only while it has no request in flight, and never so that it becomes its own child. */
function checkChildChange(parent: BlockNode, name: string, child: BlockNode | null): void {
  assert(parent.inFlight === 0, `children of node '${parent.name}' changed under its requests`);
  if (child !== null && isBelow(child, parent)) {
    throw new BlockError(`Making '${child.name}' a ${name} child of '${parent.name}' would create a cycle`);
  }
}

/** An active node uses active ones only; so do users that have not said that they can do with an inactive one. */
function checkActive(parent: EdgeParent, name: string, child: BlockNode): void {
  if (child.active) return;
  if (parent.kind === 'root') {
    if (!parent.root.allowsInactive) throw new BlockError(`Node '${child.name}' is inactive`);
  } else if (parent.node.active) {
    throw new BlockError(`Inactive '${child.name}' can't be a ${name} child of active '${parent.node.name}'`);
  }
}

function checkNotFrozen(edge: BlockChild): void {
  if (edge.frozen === 0) return;
  const parent = edge.parent.kind === 'node' ? edge.parent.node.name : edge.parent.root.describe();
  throw new BlockError(`Cannot change frozen '${edge.name}' link from '${parent}' to '${edge.node.name}'`);
}

/** Whether `node` is `top` or somewhere below it. */
export function isBelow(top: BlockNode, node: BlockNode): boolean {
  return top === node || top.children.some((edge) => isBelow(edge.node, node));
}

/** Takes the edge out of both lists; the result puts it back where it was. */
function takeOut(edge: BlockChild): () => void {
  const above = remove(edge.node.parents, edge);
  const below = edge.parent.kind === 'node' ? remove(edge.parent.node.children, edge) : -1;
  return () => {
    edge.node.parents.splice(above, 0, edge);
    if (edge.parent.kind === 'node') edge.parent.node.children.splice(below, 0, edge);
  };
}

function remove(edges: BlockChild[], edge: BlockChild): number {
  const at = edges.indexOf(edge);
  assert(at >= 0, `edge '${edge.name}' is not in the graph`);
  edges.splice(at, 1);
  return at;
}

/** Limits and lengths of what has other children now, and of everything above, from the bottom up. */
async function refreshAbove(layer: BlockLayer, touched: ReadonlySet<BlockNode>): Promise<void> {
  const order: BlockNode[] = [];
  const seen = new Set<BlockNode>();
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const { parent } of node.parents) if (parent.kind === 'node') visit(parent.node);
    order.push(node);
  };
  for (const node of touched) visit(node);
  for (const node of order.reverse()) {
    // A node that is being opened has no state yet and looks after itself.
    if (node.children.length === 0 || node.state === undefined) continue;
    refreshLimits(node);
    const before = node.totalBytes;
    try {
      await layer.graphLock.withRead((guard) => coRefreshLength(node, guard));
    } catch {
      // The old length stays; requests behind the real end fail one by one.
    }
    if (node.totalBytes === before) continue;
    for (const { parent } of node.parents) if (parent.kind === 'root') parent.root.resized();
  }
}

// ---- what is built from it -----------------------------------------------------------------------------------

/** The edges of `from` that go along when `to` takes its place: not those below `to`, nor those that stay. */
function movingEdges(from: BlockNode, to: BlockNode): BlockChild[] {
  return from.parents.filter(({ parent }) =>
    parent.kind === 'root' ? !parent.root.staysAtNode : !isBelow(to, parent.node),
  );
}

/** Every parent of `from` gets `to`, except those that are part of `to`'s own subtree. For use inside a change. */
export function redirectParents(graph: GraphChange, from: BlockNode, to: BlockNode): void {
  for (const edge of movingEdges(from, to)) graph.redirect(edge, to);
}

/** Every parent of `from` gets `to`. */
export function replaceNode(from: BlockNode, to: BlockNode): Promise<void> {
  return changeGraph(from.layer, [from, to], (graph) => redirectParents(graph, from, to));
}

/** How a filter or an overlay holds what it is put on. */
export interface OnTop {
  /** Name of the edge. Default: `file` for filters, `backing` for others. */
  readonly name?: string;
  readonly roles?: number;
}

/** Puts `top`, which has no such child yet, on `below`: parents of `below` get `top`. */
export function appendNode(top: BlockNode, below: BlockNode, how: OnTop = {}): Promise<void> {
  return changeGraph(top.layer, [below, top], (graph) => putOnTop(graph, top, below, how));
}

/** appendNode for use inside a change. */
export function putOnTop(graph: GraphChange, top: BlockNode, below: BlockNode, how: OnTop = {}): void {
  const isFilter = top.driver.kind === 'filter';
  const { name = isFilter ? 'file' : 'backing', roles = isFilter ? Role.filtered | Role.primary : Role.cow } =
    how;
  graph.attach({ kind: 'node', node: top }, name, roles, below);
  redirectParents(graph, below, top);
}

/** Takes a filter out: its parents get what it filters, and it is closed unless somebody holds it. */
export function dropFilter(filter: BlockNode): Promise<void> {
  const below = filteredChild(filter);
  assert(below !== null, `node '${filter.name}' filters nothing`);
  return changeGraph(filter.layer, [below.node, filter], (graph) => {
    redirectParents(graph, filter, below.node);
    graph.detach(below);
  }).then(() => filter.layer.closeIfUnused(filter));
}

/** Freezes edges: nobody may change them until the result is called. */
export function freezeEdges(edges: readonly BlockChild[]): () => void {
  for (const edge of edges) edge.frozen++;
  let frozen = true;
  return () => {
    assert(frozen, 'edges unfrozen twice');
    frozen = false;
    for (const edge of edges) edge.frozen--;
  };
}

export interface NewNode<S> {
  /** Default: a generated name, and the node is marked as implicit. */
  readonly name?: string | null;
  readonly options?: DriverOptions;
  readonly readOnly?: boolean;
  readonly state: S;
}

/** A node made by code, such as the filter of a job: open and without edges. The caller holds it until it is in use. */
export function makeNode<S>(layer: BlockLayer, driver: BlockDriver<S>, given: NewNode<S>): BlockNode<S> {
  const name = given.name ?? null;
  const node = new BlockNode<S>(layer, driver, {
    name: name ?? layer.generateName(),
    options: given.options ?? {},
    readOnly: given.readOnly ?? false,
    autoReadOnly: false,
    forceShare: false,
    active: true,
    untrusted: false,
    discardUnmap: true,
    detectZeroes: 'off',
    cache: { direct: false, noFlush: false },
  });
  node.state = given.state;
  node.implicit = name === null;
  layer.register(node as unknown as BlockNode);
  return node;
}
