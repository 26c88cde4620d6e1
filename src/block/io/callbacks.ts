/**
 * The one table of I/O callbacks, and the callable forms made from it.
 *
 * Every I/O callback of a driver runs in a coroutine and under the graph read lock. Per callback there are:
 * - `co.NAME(node, guard, ...)`: the caller holds the lock and passes its guard on;
 * - `wrapped.NAME(node, ...)`: takes the lock itself, for callers that are not under it.
 * The data path (reads, writes, zeroes, discards, flushes, status, truncate) has its checks and bookkeeping in io/read-write.ts;
 * its callable forms are made here from the functions there. Nothing else calls a driver's I/O callback.
 *
 * `absent` says what a driver without the callback means.
 */

import type { IoVector } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockDriverInfo } from '../contract/request.ts';
import type { ShortRequest } from '../contract/short-request.ts';
import { asHolder, debuggingGraph } from '../graph/debug.ts';
import type { BlockNode } from '../graph/node.ts';
import { type IoCallbackName, makeControlForm } from './control.ts';
import * as copyRange from './copy-range.ts';
import { coDebugEvent } from './debug.ts';
import { coFlush, coPdiscard } from './flush.ts';
import * as ioSync from './in-turn.ts';
import * as io from './read-write.ts';
import * as size from './size.ts';
import { coBlockStatus } from './status.ts';

const forms = {
  preadv: io.coPreadv,
  pwritev: io.coPwritev,
  pwritevCompressed: io.coPwritevCompressed,
  pwriteZeroes: io.coPwriteZeroes,
  pdiscard: coPdiscard,
  flush: coFlush,
  blockStatus: coBlockStatus,
  truncate: size.coTruncate,
  check: makeControlForm('check'),
  amend: makeControlForm('amend'),
  changeBackingFile: makeControlForm('changeBackingFile'),
  makeEmpty: makeControlForm('makeEmpty'),
  preadvSnapshot: makeControlForm('preadvSnapshot'),
  blockStatusSnapshot: makeControlForm('blockStatusSnapshot'),
  pdiscardSnapshot: makeControlForm('pdiscardSnapshot'),
  copyRangeFrom: copyRange.coCopyRangeFrom,
  copyRangeTo: copyRange.coCopyRangeTo,
  getLength: makeControlForm('getLength'),
  getAllocatedFileSize: makeControlForm('getAllocatedFileSize'),
  getInfo: makeControlForm('getInfo'),
  isInserted: makeControlForm('isInserted'),
  eject: makeControlForm('eject'),
  lockMedium: makeControlForm('lockMedium'),
  debugEvent: coDebugEvent,
} satisfies Record<
  IoCallbackName,
  (node: BlockNode, guard: GraphReadGuard, ...args: never[]) => Promise<unknown>
>;

type Form = (node: BlockNode, guard: GraphReadGuard, ...args: never[]) => unknown;

/** In the debug mode every form runs as the holder of its guard, and checks that it is one still. */
function checked<T extends Readonly<Record<string, Form>>>(table: T): T {
  if (!debuggingGraph) return table;
  return Object.fromEntries(
    Object.entries(table).map(([name, form]) => [
      name,
      (node: BlockNode, guard: GraphReadGuard, ...args: never[]) =>
        asHolder(guard, () => form(node, guard, ...args)),
    ]),
  ) as T;
}

/** The forms for callers that hold the graph read lock. */
export const co = checked(forms);

/** Runs a call of a form; `args` are what follows the guard. */
export type AroundForm = <T>(
  name: IoCallbackName,
  node: BlockNode,
  args: readonly unknown[],
  run: () => Promise<T>,
) => Promise<T>;

/**
 * Puts `around` about every call of a form from now on, in the whole process: for traces and for the log of slow requests.
 * Whoever does not ask for them pays nothing.
 */
export function observeForms(around: AroundForm): void {
  const table = co as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
  for (const [name, form] of Object.entries(table)) {
    table[name] = (node, guard, ...args) =>
      around(name as IoCallbackName, node as BlockNode, args, () => form(node, guard, ...args));
  }
}

/** Calls `seen` for every request that is done, or begun, within the turn: those that come by no form. */
export function observeInTurn(
  seen: (
    name: 'tryPreadv' | 'tryPwritev' | 'lendPages',
    node: BlockNode,
    offset: number,
    bytes: number,
  ) => void,
): void {
  for (const name of ['tryPreadv', 'tryPwritev'] as const) {
    const form = inTurn[name];
    inTurn[name] = (node, guard, offset, bytes, vec, short) => {
      const isDone = form(node, guard, offset, bytes, vec, short);
      if (isDone) seen(name, node, offset, bytes);
      return isDone;
    };
  }
  const { lendPages } = inTurn;
  inTurn.lendPages = (node, guard, offset, bytes) => {
    const pages = lendPages(node, guard, offset, bytes);
    if (pages !== null) seen('lendPages', node, offset, bytes);
    return pages;
  };
}

const inTurn = checked({
  tryPreadv: ioSync.tryPreadv,
  tryPwritev: ioSync.tryPwritev,
  lendPages: ioSync.lendPages,
});

type TryForm = (
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short?: ShortRequest | null,
) => boolean;

/**
 * Callbacks that never wait: for callers that hold the lock for the time of the call and go on in the same turn. With a
 * short request of a ShortIo, its holder keeps the lock until it ends.
 */
export const sync = inTurn as {
  readonly tryPreadv: TryForm;
  readonly tryPwritev: TryForm;
  readonly lendPages: typeof ioSync.lendPages;
};

type Tail<T extends unknown[]> = T extends [unknown, unknown, ...infer Rest] ? Rest : never;

type Wrapped = {
  readonly [K in IoCallbackName]: (
    node: BlockNode,
    ...args: Tail<Parameters<(typeof co)[K]>>
  ) => ReturnType<(typeof co)[K]>;
};

/** The forms for callers outside the lock: each takes it for the time of the call. */
export const wrapped: Wrapped = Object.fromEntries(
  Object.entries(co).map(([name, form]) => [
    name,
    (node: BlockNode, ...args: readonly unknown[]) =>
      node.layer.graphLock.withRead((guard) =>
        (form as (node: BlockNode, guard: GraphReadGuard, ...rest: readonly unknown[]) => Promise<unknown>)(
          node,
          guard,
          ...args,
        ),
      ),
  ]),
) as unknown as Wrapped;

/** getInfo, or null where the node has nothing to tell. */
export async function infoOrNull(node: BlockNode): Promise<BlockDriverInfo | null> {
  try {
    return await wrapped.getInfo(node);
  } catch (error) {
    if (error instanceof BlockError && error.errno === E.ENOTSUP) return null;
    throw error;
  }
}
