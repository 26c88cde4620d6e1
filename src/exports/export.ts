/**
 * One export of any kind: the node it holds, what runs on it, and its end.
 *
 * Here: what all kinds have in common, from the permissions taken to the last request. Not here: the registry and the
 * commands' checks (table.ts), what is particular to a kind (its folder).
 */

import type { BlockExportOptions } from '../../schema/generated/types.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BackendOwner } from '../block/contract/backend-io.ts';
import { hurry } from '../block/graph/drain.ts';
import type { BlockNode } from '../block/graph/node.ts';
import type { BlockLayer } from '../block/layer.ts';
import {
  joinThrottle,
  leaveThrottle,
  letAllGo,
  type ThrottleMember,
} from '../block/throttle/throttle-group.ts';
import { BlockError } from '../errors/error.ts';
import type { ExportType, ExportTypeName, RunningExport } from './contract.ts';
import { MeteredBackend } from './metered-backend.ts';
import { createStatistics, type ExportStatistics } from './statistics.ts';

/** The node's side of an export: what it does in a drained section, and when its node changes its length. */
class ExportOwner implements BackendOwner {
  depth = 0;
  /** Nothing must wait for its turn any more. */
  hurried = false;
  running: RunningExport | null = null;
  limits: ThrottleMember | null = null;
  readonly allowsInactive: boolean;

  constructor(allowsInactive: boolean) {
    this.allowsInactive = allowsInactive;
  }

  /** Exports are nameless block devices to the permission system, as in the original. */
  describe(): string {
    return 'an unnamed block device';
  }

  drainedBegin(): void {
    this.depth++;
    if (this.depth > 1) return;
    if (this.limits !== null) letAllGo(this.limits);
    this.running?.setPaused(true);
  }

  drainedEnd(): void {
    this.depth--;
    if (this.depth === 0) this.running?.setPaused(false);
  }

  resized(): void {
    this.running?.resized();
  }
}

export interface BlockExport {
  readonly id: string;
  readonly type: ExportTypeName;
  /** As the user gave them; `node-name` is where the export began. */
  readonly options: BlockExportOptions;
  readonly statistics: ExportStatistics;
  readonly running: RunningExport;
  readonly backend: BlockBackend;
  readonly owner: ExportOwner;
  readonly leaveLimits: () => void;
  /** Removed by the user, but some of its requests are still under way. */
  shuttingDown: boolean;
  gone: Promise<void> | null;
  /** Where it was when it let go of its node. */
  lastNodeName: string | null;
}

/** The throttle group an export's requests wait for; null where the options name none. */
function joinLimits(
  layer: BlockLayer,
  id: string | undefined,
  owner: ExportOwner,
): { readonly member: ThrottleMember; readonly leave: () => void } | null {
  if (id === undefined) return null;
  const used = layer.useThrottleGroup(id);
  if (used === null) throw new BlockError(`Throttle group '${id}' does not exist`);
  const member = joinThrottle(layer.throttleOf(used.group), () => owner.depth > 0 || owner.hurried);
  return {
    member,
    leave: () => {
      leaveThrottle(member);
      used.release();
    },
  };
}

/** Takes the node and starts the export. Throws BlockError; then nothing is left behind. */
export async function createExport(
  layer: BlockLayer,
  type: ExportType,
  options: BlockExportOptions,
  node: BlockNode,
  writable: boolean,
): Promise<BlockExport> {
  const allowsInactive = options['allow-inactive'] ?? false;
  if (allowsInactive && type.servesInactive !== true)
    throw new BlockError(`Export type '${options.type}' does not support inactive exports`);
  const owner = new ExportOwner(allowsInactive);
  const limits = joinLimits(layer, options['x-throttle-group'], owner);
  let backend: BlockBackend | null = null;
  try {
    const want = type.permissions(options, writable);
    backend = await layer.createBackend(node, want, owner);
    owner.limits = limits?.member ?? null;
    const statistics = createStatistics();
    const starting = type.start(options, {
      id: options.id,
      node,
      io: new MeteredBackend(backend, statistics, owner.limits),
      backend,
      writable,
      writethrough: options.writethrough ?? false,
      get paused() {
        return owner.depth > 0;
      },
    });
    // A kind that starts within the turn is watched within the turn.
    const running = starting instanceof Promise ? await starting : starting;
    owner.running = running;
    running.setPaused(owner.depth > 0);
    return {
      id: options.id,
      type: options.type,
      options,
      statistics,
      running,
      backend,
      owner,
      leaveLimits: () => limits?.leave(),
      shuttingDown: false,
      gone: null,
      lastNodeName: null,
    };
  } catch (error) {
    owner.limits = null;
    await backend?.close();
    limits?.leave();
    throw error;
  }
}

/** The node that is offered now: another one may take its place. */
export function nodeNameOf({ lastNodeName, backend }: BlockExport): string {
  return lastNodeName ?? backend.nodeName;
}

/** Disconnects the clients, waits for their last request and lets go of the node. Idempotent. */
export function shutDownExport(exp: BlockExport): Promise<void> {
  exp.gone ??= shutDown(exp);
  return exp.gone;
}

async function shutDown(exp: BlockExport): Promise<void> {
  const { owner, backend, running } = exp;
  exp.shuttingDown = true;
  // Throttling must not keep an export that nobody wants any more.
  owner.hurried = true;
  if (owner.limits !== null) letAllGo(owner.limits);
  const relax = running.clientCount > 0 ? hurry(backend.node) : null;
  try {
    await running.stop();
  } finally {
    relax?.();
    exp.lastNodeName = backend.nodeName;
    owner.running = null;
    await backend.close();
    owner.limits = null;
    exp.leaveLimits();
  }
}
