/**
 * The one table of I/O callbacks, and the callable forms made from it.
 *
 * Every I/O callback of a driver runs in a coroutine and under the graph read lock. Per callback there are:
 * - `co.NAME(node, guard, ...)`: the caller holds the lock and passes its guard on;
 * - `wrapped.NAME(node, ...)`: takes the lock itself, for callers that are not under it.
 * The data path (reads, writes, zeroes, discards, flushes, status, truncate) has its checks and bookkeeping in io.ts;
 * its callable forms are made here from the functions there. Nothing else calls a driver's I/O callback.
 *
 * `absent` says what a driver without the callback means.
 */

import { E } from '../errors/errno.ts';
import { BlockError } from '../errors/error.ts';
import type { BlockDriver, BlockDriverInfo } from './driver.ts';
import { asHolder, debuggingGraph } from './graph-debug.ts';
import type { GraphReadGuard } from './graph-lock.ts';
import * as io from './io.ts';
import * as copyRange from './io-copy-range.ts';
import { coDebugEvent } from './io-debug.ts';
import { coFlush, coPdiscard } from './io-flush.ts';
import * as size from './io-size.ts';
import * as ioSync from './io-sync.ts';
import type { BlockNode } from './node.ts';

/** I/O callbacks of the contract: those that take the guard as their second parameter. */
export type IoCallbackName = {
  [K in keyof BlockDriver]-?: NonNullable<BlockDriver[K]> extends (
    node: BlockNode,
    guard: GraphReadGuard,
    ...rest: never[]
  ) => unknown
    ? Parameters<NonNullable<BlockDriver[K]>>[1] extends GraphReadGuard
      ? ReturnType<NonNullable<BlockDriver[K]>> extends Promise<unknown>
        ? K
        : never
      : never
    : never;
}[keyof BlockDriver];

/** Absent means: ask the `file` child; refuse with ENOTSUP; or io.ts decides. */
type Absent = 'child' | 'unsupported' | 'io-path';

export const IO_CALLBACKS = {
  preadv: 'io-path',
  pwritev: 'io-path',
  pwritevCompressed: 'io-path',
  pwriteZeroes: 'io-path',
  pdiscard: 'io-path',
  flush: 'io-path',
  blockStatus: 'io-path',
  truncate: 'io-path',
  check: 'unsupported',
  amend: 'unsupported',
  changeBackingFile: 'unsupported',
  preadvSnapshot: 'unsupported',
  blockStatusSnapshot: 'unsupported',
  pdiscardSnapshot: 'unsupported',
  copyRangeFrom: 'io-path',
  copyRangeTo: 'io-path',
  getLength: 'child',
  getAllocatedFileSize: 'child',
  getInfo: 'child',
  isInserted: 'child',
  eject: 'child',
  lockMedium: 'child',
  debugEvent: 'io-path',
} as const satisfies Record<IoCallbackName, Absent>;

type ControlCallback = {
  [K in keyof typeof IO_CALLBACKS]: (typeof IO_CALLBACKS)[K] extends 'io-path' ? never : K;
}[keyof typeof IO_CALLBACKS];
type Tail<T extends unknown[]> = T extends [unknown, unknown, ...infer Rest] ? Rest : never;
type CallbackOf<K extends IoCallbackName> = NonNullable<BlockDriver[K]>;
type ArgsOf<K extends IoCallbackName> = Tail<Parameters<CallbackOf<K>>>;
type CoForm<K extends IoCallbackName> = (
  node: BlockNode,
  guard: GraphReadGuard,
  ...args: ArgsOf<K>
) => ReturnType<CallbackOf<K>>;

/** What a bottom node answers when its driver has no such callback; absent here means ENOTSUP. */
const BOTTOM_ANSWER: Partial<Record<ControlCallback, unknown>> = {
  getAllocatedFileSize: 0,
  isInserted: true,
  eject: undefined,
  lockMedium: undefined,
};

function makeControlForm<K extends ControlCallback>(name: K): CoForm<K> {
  const call = (node: BlockNode, guard: GraphReadGuard, ...args: readonly unknown[]): Promise<unknown> => {
    const callback = node.driver[name] as ((...all: readonly unknown[]) => Promise<unknown>) | undefined;
    if (callback !== undefined) return callback.call(node.driver, node, guard, ...args);
    const below = IO_CALLBACKS[name] === 'child' ? node.primaryChild : null;
    if (below !== null) return call(below.node, guard, ...args);
    if (name in BOTTOM_ANSWER) return Promise.resolve(BOTTOM_ANSWER[name]);
    return Promise.reject(
      new BlockError(`Node '${node.name}' does not support ${name}`, { errno: E.ENOTSUP }),
    );
  };
  return call as unknown as CoForm<K>;
}

const forms = {
  preadv: io.coPreadv,
  pwritev: io.coPwritev,
  pwritevCompressed: io.coPwritevCompressed,
  pwriteZeroes: io.coPwriteZeroes,
  pdiscard: coPdiscard,
  flush: coFlush,
  blockStatus: size.coBlockStatus,
  truncate: size.coTruncate,
  check: makeControlForm('check'),
  amend: makeControlForm('amend'),
  changeBackingFile: makeControlForm('changeBackingFile'),
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

/** Callbacks that never wait: for callers that hold the lock for the time of the call and go on in the same turn. */
export const sync = checked({ tryPreadv: ioSync.tryPreadv, tryPwritev: ioSync.tryPwritev });

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
