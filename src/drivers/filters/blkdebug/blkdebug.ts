/**
 * blkdebug: a filter that fails and suspends requests at events, for tests.
 *
 * Drivers above and the I/O path tell it about events (debugEvent); rules say what happens then (blkdebug/rules.ts).
 * Rules come from options and from a file (config-file.ts). It can also be given other limits and permissions than the
 * node below has. Names: `blkdebug:[CONFIG]:IMAGE`.
 * Source of the facts: QEMU documentation, "blkdebug"; QMP reference, BlockdevOptionsBlkdebug.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { BlkdebugIOType } from '../../../../schema/generated/types.ts';
import { readHostFile } from '../../../aio/host/files.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { DriverOptions } from '../../../block/contract/image.ts';
import { type BlockLimits, Perm, Req, Role, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { exactFilename } from '../../../block/open/filename.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../errors/error.ts';
import { blkdebugNames } from '../test-names.ts';
import { parseConfig } from './config-file.ts';
import {
  addBreakpoint,
  addRules,
  createRuleBook,
  faultFor,
  groupsOfOptions,
  happened,
  RULE_GROUPS,
  type RuleBook,
  removeBreakpoints,
  resumeSuspended,
} from './rules.ts';

/** Longest time a timer of Node can be set to. */
const MAX_TIMER_MS = 2 ** 31 - 1;

interface BlkdebugState {
  readonly book: RuleBook;
  /** The user's limits in bytes; 0: that of the node below. */
  readonly limits: DebugLimits;
  readonly takePerm: number;
  readonly unshare: number;
}

type LimitName =
  | 'align'
  | 'max-transfer'
  | 'opt-write-zero'
  | 'max-write-zero'
  | 'opt-discard'
  | 'max-discard';
type DebugLimits = Readonly<Record<LimitName, number>>;

const PERMISSIONS: Readonly<Record<string, number>> = {
  'consistent-read': Perm.consistentRead,
  write: Perm.write,
  'write-unchanged': Perm.writeUnchanged,
  resize: Perm.resize,
};
const STRONG_OPTIONS = [
  ...['config', 'align', 'max-transfer', 'opt-write-zero', 'max-write-zero', 'opt-discard', 'max-discard'],
  ...['inject-error', 'set-state'],
];
const MAX_INT32 = 2 ** 31 - 1;
const MAX_CONFIG_BYTES = 16 * 1024 * 1024;

async function open(node: BlockNode<BlkdebugState>, context: OpenContext): Promise<BlkdebugState> {
  const { options } = context;
  for (const name of ['inject-error', 'set-state', 'take-child-perms', 'unshare-child-perms']) {
    if (Array.isArray(options[name]) && options[name].length === 0)
      throw new BlockError(`Block protocol 'blkdebug' doesn't support the option '${name}'`);
  }
  const book = createRuleBook();
  addRules(book, [
    ...(await readConfig(options.config)),
    ...groupsOfOptions('inject-error', options['inject-error']),
    ...groupsOfOptions('set-state', options['set-state']),
  ]);
  const takePerm = permissionsOf(options['take-child-perms']);
  const unshare = permissionsOf(options['unshare-child-perms']);
  const name = options['x-image'];
  if (typeof name === 'string') {
    if (typeof options.image === 'string') {
      throw new BlockError(
        'Cannot reference an existing block device with additional options or a new filename',
      );
    }
    await context.openNamedChild('image', Role.filtered | Role.primary, name);
  } else {
    await context.openChild('image', Role.filtered | Role.primary, true);
  }
  const limits = limitsOf(options);
  happened(book, 'none', printer(node));
  return { book, limits, takePerm, unshare };
}

async function readConfig(name: unknown): Promise<ReturnType<typeof parseConfig>> {
  if (typeof name !== 'string') return [];
  let text: string;
  try {
    text = (await readHostFile(name, MAX_CONFIG_BYTES)).toString('latin1');
  } catch (error) {
    const isRead = (error as NodeJS.ErrnoException).syscall === 'read';
    throw errnoError(
      isRead ? 'Cannot read config file' : 'Could not read blkdebug config file',
      errnoOf(error),
    );
  }
  return parseConfig(text, RULE_GROUPS);
}

function permissionsOf(list: unknown): number {
  const names = typeof list === 'object' && list !== null ? Object.values(list) : [];
  let perm = 0;
  for (const name of names) {
    const bit = Object.hasOwn(PERMISSIONS, String(name)) ? PERMISSIONS[String(name)]! : undefined;
    if (bit === undefined) throw new BlockError(`Parameter 'null' does not accept value '${String(name)}'`);
    perm |= bit;
  }
  return perm;
}

/** The limits in the order in which they are checked: each must be a multiple of the one it builds on. */
function limitsOf(options: DriverOptions): DebugLimits {
  const given = (name: LimitName): number => {
    const value = Number(options[name] ?? 0);
    if (value < 0) throw new BlockError(`Parameter '${name}' expects a non-negative number below 2^64`);
    if (name !== 'align' && value > MAX_INT32) throw new BlockError(`Parameter '${name}' expects int32_t`);
    return value;
  };
  const check = (name: LimitName, unit: number): number => {
    const value = given(name);
    if (value !== 0 && value % Math.max(unit, 1) !== 0) refuse(name, value);
    return value;
  };
  const align = given('align');
  if (align !== 0 && (align > MAX_INT32 || (align & (align - 1)) !== 0)) refuse('align', align);
  const maxTransfer = check('max-transfer', align);
  const optWriteZero = check('opt-write-zero', align);
  const maxWriteZero = check('max-write-zero', Math.max(optWriteZero, align));
  const optDiscard = check('opt-discard', align);
  const maxDiscard = check('max-discard', Math.max(optDiscard, align));
  return {
    align,
    'max-transfer': maxTransfer,
    'opt-write-zero': optWriteZero,
    'max-write-zero': maxWriteZero,
    'opt-discard': optDiscard,
    'max-discard': maxDiscard,
  };
}

function refuse(name: LimitName, value: number): never {
  throw new BlockError(`Cannot meet constraints with ${name} ${value}`);
}

function printer({ layer }: BlockNode<BlkdebugState>): (text: string) => void {
  return (text) => layer.print(text);
}

function below(node: BlockNode<BlkdebugState>): BlockNode {
  return node.children[0]!.node;
}

/** Lets the request go on, or fail, in this turn of the event loop or in a later one, as the rules say. */
function met(
  node: BlockNode<BlkdebugState>,
  guard: GraphReadGuard,
  type: BlkdebugIOType,
  offset: number,
  bytes: number,
  goOn: () => Promise<void>,
): Promise<void> {
  const { book } = node.state;
  if (book.inForce.length === 0) return goOn();
  const { errno, immediately, delayNs } = faultFor(book, type, offset, bytes);
  if (delayNs > 0) {
    const delay = (): Promise<void> => sleep(Math.min(delayNs / 1e6, MAX_TIMER_MS));
    const late = node.layer.graphLock.suspended(guard, delay);
    return late.then(() => (errno === 0 ? goOn() : Promise.reject(ioError(errno))));
  }
  if (errno === 0) return goOn();
  if (immediately) return Promise.reject(ioError(errno));
  return new Promise((_resolve, reject) => setImmediate(() => reject(ioError(errno))));
}

/** Zero writes and discards shorter than what the node says it does best are not done efficiently. */
function isTooShort(bytes: number, limits: BlockLimits, unit: number): boolean {
  return bytes < Math.max(limits.requestAlignment, unit);
}

export const blkdebug: BlockDriver<BlkdebugState> = {
  name: 'blkdebug',
  kind: 'filter',
  isProtocolFilter: true,
  supportedWriteFlags: Req.writeUnchanged,
  supportedZeroFlags: Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  strongOptions: STRONG_OPTIONS,
  ...blkdebugNames,
  open,
  reopenPrepare: async () => undefined,
  exactFilename(node) {
    const { options } = node.settings;
    if (STRONG_OPTIONS.some((name) => name !== 'config' && options[name] !== undefined)) return null;
    const image = exactFilename(below(node));
    return image === null ? null : `blkdebug:${String(options.config ?? '')}:${image}`;
  },
  childPermissions(node, _roles, { perm, shared }) {
    // Before `state` is there the node is being opened and has no users.
    const state = node.state as BlkdebugState | undefined;
    if (state === undefined) return { perm, shared };
    return { perm: perm | state.takePerm, shared: shared & ~state.unshare };
  },
  refreshLimits({ state }, limits) {
    limits.requestAlignment = state.limits.align || limits.requestAlignment;
    limits.maxTransfer = state.limits['max-transfer'];
    limits.pwriteZeroesAlignment = state.limits['opt-write-zero'];
    limits.maxPwriteZeroes = state.limits['max-write-zero'];
    limits.pdiscardAlignment = state.limits['opt-discard'];
    limits.maxPdiscard = state.limits['max-discard'];
  },
  debugger: {
    setBreakpoint(node, event, tag) {
      if (!addBreakpoint(node.state.book, event, tag)) throw ioError(E.ENOENT);
    },
    removeBreakpoint(node, tag) {
      if (!removeBreakpoints(node.state.book, tag, printer(node))) throw ioError(E.ENOENT);
    },
    resume(node, tag) {
      if (!resumeSuspended(node.state.book, tag, printer(node))) throw ioError(E.ENOENT);
    },
    isSuspended: ({ state: { book } }, tag) => book.suspended.some((request) => request.tag === tag),
  },
  debugEvent(node, _guard, event) {
    return happened(node.state.book, event, printer(node)) ?? Promise.resolve();
  },
  preadv(node, guard, offset, bytes, vec, flags) {
    const goOn = (): Promise<void> => co.preadv(below(node), guard, offset, bytes, vec, flags);
    return met(node, guard, 'read', offset, bytes, goOn);
  },
  pwritev(node, guard, offset, bytes, vec, flags) {
    const goOn = (): Promise<void> => co.pwritev(below(node), guard, offset, bytes, vec, flags);
    return met(node, guard, 'write', offset, bytes, goOn);
  },
  pwriteZeroes(node, guard, offset, bytes, flags) {
    if (isTooShort(bytes, node.limits, node.limits.pwriteZeroesAlignment))
      return Promise.reject(ioError(E.ENOTSUP));
    const goOn = (): Promise<void> => co.pwriteZeroes(below(node), guard, offset, bytes, flags);
    return met(node, guard, 'write-zeroes', offset, bytes, goOn);
  },
  pdiscard(node, guard, offset, bytes) {
    if (isTooShort(bytes, node.limits, node.limits.pdiscardAlignment))
      return Promise.reject(ioError(E.ENOTSUP));
    const goOn = (): Promise<void> => co.pdiscard(below(node), guard, offset, bytes);
    return met(node, guard, 'discard', offset, bytes, goOn);
  },
  flush: (node, guard) => met(node, guard, 'flush', 0, 0, () => Promise.resolve()),
  async blockStatus(node, guard, _wantZero, offset, bytes) {
    await met(node, guard, 'block-status', offset, bytes, () => Promise.resolve());
    const flags = Status.offsetValid | Status.recurse;
    return { bytes, flags, map: offset, file: below(node) };
  },
  getAllocatedFileSize: async () => -1,
  truncate(node, guard, length, exact, prealloc, zeroFill) {
    return co.truncate(below(node), guard, length, exact, prealloc, zeroFill);
  },
};
