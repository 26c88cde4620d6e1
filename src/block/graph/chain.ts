/**
 * Chains: what a node falls back to, filters and backing images alike. Looks only; changes are graph/change.ts.
 *
 * For monitor code, and for requests that hold the graph lock.
 */

import { assert } from '../../errors/error.ts';
import type { InternalSnapshots } from '../contract/image.ts';
import { Role } from '../contract/request.ts';
import type { BlockChild, BlockNode } from './node.ts';

/** The edge to the backing image; null when there is none. */
export function cowChild(node: BlockNode): BlockChild | null {
  return node.children.find((edge) => (edge.roles & Role.cow) !== 0) ?? null;
}

/** The edge to what a filter filters; null for other nodes. */
export function filteredChild(node: BlockNode): BlockChild | null {
  return node.children.find((edge) => (edge.roles & Role.filtered) !== 0) ?? null;
}

/** The edge to what a node falls back to: the backing image, or what a filter filters; null at the end of a chain. */
export function chainChild(node: BlockNode): BlockChild | null {
  return node.children.find((edge) => (edge.roles & (Role.cow | Role.filtered)) !== 0) ?? null;
}

/** The first node from `node` downwards that is no filter. */
export function skipFilters(node: BlockNode): BlockNode {
  let at = node;
  for (let edge = filteredChild(at); edge !== null; edge = filteredChild(at)) at = edge.node;
  return at;
}

const HOLDS_DATA = Role.data | Role.metadata | Role.filtered;

/** A node that keeps internal snapshots, and what can be done with them. */
export interface SnapshotKeeper {
  readonly keeper: BlockNode;
  readonly snapshots: InternalSnapshots;
}

/**
 * The node in which internal snapshots of `node` are: itself, where its format has them, else the one it has all its
 * data from; null where there is none.
 */
export function snapshotKeeper(node: BlockNode): SnapshotKeeper | null {
  for (let keeper = node; ; ) {
    const { snapshots } = keeper.driver;
    if (snapshots !== undefined) return { keeper, snapshots };
    const [edge, ...others] = keeper.children.filter(({ roles }) => (roles & HOLDS_DATA) !== 0);
    if (edge === undefined || others.length > 0 || (edge.roles & Role.primary) === 0) return null;
    keeper = edge.node;
  }
}

/** The edges of the chain from `top` down to `base` (the end of the chain when null). */
export function chainEdges(top: BlockNode, base: BlockNode | null): BlockChild[] {
  const edges: BlockChild[] = [];
  for (let node = top; node !== base; ) {
    const edge = chainChild(node);
    if (edge === null) {
      assert(base === null, `node '${base?.name}' is not below '${top.name}'`);
      break;
    }
    edges.push(edge);
    node = edge.node;
  }
  return edges;
}

/** Whether nothing but exports and the like are above the node: no other node, and no job that has it for itself. */
export function isRootNode(node: BlockNode): boolean {
  return node.parents.every(({ parent, name }) => parent.kind === 'root' && name === 'root');
}

/** Whether `node` shows nothing but what `below` holds, whatever happens: filters do, and a quorum of its children. */
export function showsContentOf(node: BlockNode, below: BlockNode): boolean {
  if (node === below) return true;
  if (node.driver.name === 'quorum') return node.children.some((edge) => showsContentOf(edge.node, below));
  const filtered = filteredChild(node);
  return filtered !== null && showsContentOf(filtered.node, below);
}
