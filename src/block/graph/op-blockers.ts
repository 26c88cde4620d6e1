/**
 * Operation blockers: why an operation is not allowed on a node at present, in the words of whoever forbids it.
 *
 * Permissions say what users of a node do with its data; blockers keep whole operations apart that would not notice
 * each other by permissions alone.
 */

import { assert, BlockError } from '../../errors/error.ts';
import { Role } from '../contract/request.ts';
import type { BlockNode } from './node.ts';

export type Operation =
  | 'backup-source'
  | 'backup-target'
  | 'change'
  | 'commit-source'
  | 'commit-target'
  | 'delete'
  | 'external-snapshot'
  | 'internal-snapshot'
  | 'internal-snapshot-delete'
  | 'mirror-source'
  | 'mirror-target'
  | 'resize'
  | 'stream'
  | 'replace';

export interface OpBlocker {
  /** Operations that stay allowed. */
  readonly except: readonly Operation[];
  readonly reason: string;
}

/** What may be done with a node that is somebody's backing image. */
const ALLOWED_ON_BACKING: readonly Operation[] = [
  'commit-target',
  'stream',
  'backup-source',
  'backup-target',
];

/** Forbids all operations on `node` but `except`, until the result is called. */
export function blockOperations(
  node: BlockNode,
  reason: string,
  except: readonly Operation[] = [],
): () => void {
  const blocker: OpBlocker = { reason, except };
  node.opBlockers.push(blocker);
  return () => {
    const at = node.opBlockers.indexOf(blocker);
    assert(at >= 0, 'operations unblocked twice');
    node.opBlockers.splice(at, 1);
  };
}

/** Why `operation` is not allowed on the node; null when it is. The newest reason counts. */
export function operationBlocker(node: BlockNode, operation: Operation): string | null {
  const blocker = node.opBlockers.findLast(({ except }) => !except.includes(operation));
  if (blocker !== undefined) return blocker.reason;
  if (ALLOWED_ON_BACKING.includes(operation)) return null;
  for (const { parent, roles } of node.parents) {
    if ((roles & Role.cow) !== 0 && parent.kind === 'node')
      return `node is used as backing hd of '${parent.node.name}'`;
  }
  return null;
}

/** Throws when the operation is not allowed. */
export function checkOperation(node: BlockNode, operation: Operation): void {
  const reason = operationBlocker(node, operation);
  if (reason !== null) throw new BlockError(`Node '${node.name}' is busy: ${reason}`);
}
