/**
 * Permissions: what each user of a node does with it, and what it lets others do.
 *
 * They are cumulative (a node's permissions are the union of what its parents take and the intersection of what they
 * share) and transactional: a change is computed over all affected nodes, checked, and then kept or undone as a
 * whole. Drivers that hold permissions outside the process (file locks) take part through check/set/abort.
 */

import { BlockError } from '../../errors/error.ts';
import { Perm, type PermissionPair, Role } from '../contract/request.ts';
import type { BlockChild, BlockNode } from './node.ts';

const NAMES: readonly (readonly [number, string])[] = [
  [Perm.consistentRead, 'consistent read'],
  [Perm.write, 'write'],
  [Perm.writeUnchanged, 'write unchanged'],
  [Perm.resize, 'resize'],
];

/** Names of the permission bits, in the wording of the original's error messages. */
export function permissionNames(perm: number): string {
  return NAMES.filter(([bit]) => (perm & bit) !== 0)
    .map(([, name]) => name)
    .join(', ');
}

/** What the parents of a node take and share together. */
export function cumulativePermissions(node: BlockNode): PermissionPair {
  let perm = 0;
  let shared: number = Perm.all;
  for (const edge of node.parents) {
    perm |= edge.perm;
    shared &= edge.shared;
  }
  return { perm, shared };
}

function describeParent(edge: BlockChild): string {
  return edge.parent.kind === 'root' ? edge.parent.root.describe() : `node '${edge.parent.node.name}'`;
}

/** Throws when one parent takes what another does not share; the newest that does not share comes first. */
function checkConflicts(node: BlockNode): void {
  const edges = node.parents;
  for (let i = edges.length - 1; i >= 0; i--) {
    for (let j = edges.length - 1; j >= 0; j--) {
      const keeper = edges[i]!;
      const taker = edges[j]!;
      const conflict = i === j ? 0 : taker.perm & ~keeper.shared;
      if (conflict === 0) continue;
      const who = (edge: BlockChild): string =>
        `${describeParent(edge)} (uses node '${node.name}' as '${edge.name}' child)`;
      throw new BlockError(
        `Permission conflict on node '${node.name}': permissions '${permissionNames(conflict)}' are both required by ` +
          `${who(taker)} and unshared by ${who(keeper)}.`,
      );
    }
  }
}

interface SavedEdge {
  readonly edge: BlockChild;
  readonly perm: number;
  readonly shared: number;
}

/** A resize of a read-only node is refused by the resize itself, after the driver's locks had their say. */
const MODIFYING = Perm.write | Perm.writeUnchanged;

function readOnlyError(node: BlockNode): BlockError {
  return new BlockError(
    node.turnsReadOnly
      ? `Read-only block node '${node.name}' cannot support read-write users`
      : 'Block node is read-only',
  );
}

/** A write to the last block is made one to the whole of it, which goes behind the end of an unaligned image. */
function checkAlignedEnd({ totalBytes, limits }: BlockNode, perm: number): void {
  if ((perm & MODIFYING) === 0 || (perm & Perm.resize) !== 0) return;
  if (totalBytes % limits.requestAlignment === 0) return;
  throw new BlockError(
    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
  );
}

const NOTHING: PermissionPair = { perm: 0, shared: Perm.all };

/** What is claimed outside the process: nothing for an inactive node, whatever its users want. */
function claimedPermissions(node: BlockNode): PermissionPair {
  return node.active ? cumulativePermissions(node) : NOTHING;
}

/** What `edge`'s parent node takes on it, given what the parent's own users want. */
function childPermissions(node: BlockNode, edge: BlockChild): PermissionPair {
  if (!node.active) return NOTHING;
  const wanted = cumulativePermissions(node);
  const pair = node.driver.childPermissions?.(node, edge.roles, wanted) ?? wanted;
  // force-share: whatever others do to the child is accepted.
  return edge.node.settings.forceShare ? { perm: pair.perm, shared: Perm.all } : pair;
}

/** `nodes` and everything below them, parents before children. */
function topologicalOrder(nodes: readonly BlockNode[]): BlockNode[] {
  const seen = new Set<BlockNode>();
  const order: BlockNode[] = [];
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    // The last child first, so that the first is looked at first.
    for (const edge of node.children.toReversed()) visit(edge.node);
    order.push(node);
  };
  for (const node of nodes) visit(node);
  return order.reverse();
}

/**
 * Recomputes the permissions of `nodes` and everything below after the edges above them changed. All or nothing:
 * on error the edges below have their old permissions again; undoing the caller's own change is the caller's.
 */
export function refreshPermissions(nodes: readonly BlockNode[]): void {
  const saved: SavedEdge[] = [];
  const checked: BlockNode[] = [];
  const order = topologicalOrder(nodes);
  try {
    for (const node of order) {
      const { perm } = cumulativePermissions(node);
      checkConflicts(node);
      if (node.active) {
        if ((perm & MODIFYING) !== 0 && node.readOnly) throw readOnlyError(node);
        checkAlignedEnd(node, perm);
      }
      for (const edge of node.children) {
        const pair = childPermissions(node, edge);
        saved.push({ edge, perm: edge.perm, shared: edge.shared });
        edge.perm = pair.perm;
        edge.shared = pair.shared;
      }
    }
    for (const node of order) {
      if (node.driver.checkPermissions === undefined) continue;
      checked.push(node);
      node.driver.checkPermissions(node, claimedPermissions(node));
    }
  } catch (error) {
    for (const { edge, perm, shared } of saved.reverse()) {
      edge.perm = perm;
      edge.shared = shared;
    }
    for (const node of checked) node.driver.abortPermissions?.(node);
    throw error;
  }
  for (const node of order) node.driver.setPermissions?.(node, claimedPermissions(node));
}

/**
 * What a format takes on a child of the given role (roles as in driver.ts). Metadata must be consistent and nobody
 * else's to change; a format that may be written to takes write and resize at all times, because it may have to
 * update metadata without any user writing. A backing image is only read.
 */
export function formatChildPermissions(
  node: BlockNode,
  roles: number,
  wanted: PermissionPair,
): PermissionPair {
  if ((roles & Role.cow) !== 0) {
    const mayChange = (wanted.shared & Perm.write) !== 0 ? Perm.write | Perm.resize : 0;
    return {
      perm: wanted.perm & Perm.consistentRead,
      shared: mayChange | Perm.consistentRead | Perm.writeUnchanged,
    };
  }
  let { perm, shared } = wanted;
  if ((roles & Role.metadata) !== 0) {
    if (!node.readOnly) perm |= Perm.write | Perm.resize;
    perm |= Perm.consistentRead;
    shared &= ~(Perm.write | Perm.resize);
  } else {
    // Data alone: written by users only, who may have it grow; nobody else may change its length.
    if ((perm & Perm.writeUnchanged) !== 0) perm |= Perm.write;
    if ((perm & Perm.write) !== 0) perm |= Perm.resize;
    shared &= ~Perm.resize;
  }
  return { perm, shared };
}
