/**
 * The table of I/O callbacks of the contract, and the callable forms of those that are neither data nor status: asked
 * of the driver, or of the child below where a driver has none. callbacks.ts makes everything callable from it.
 */

import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import type { BlockDriver } from '../contract/driver.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';

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

/** Absent means: ask the `file` child; refuse with ENOTSUP; or io/read-write.ts decides. */
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
  makeEmpty: 'unsupported',
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

/** The callable form of a callback that needs no bookkeeping of the I/O path. */
export function makeControlForm<K extends ControlCallback>(name: K): CoForm<K> {
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
