/**
 * The iothread object: a record of its parameters. All I/O runs on the main thread's loop so far, so that naming an
 * iothread has no effect beyond the checks.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { expectInteger, type QomAccessor, type QomObject } from './qom.ts';

export type IothreadOptions = Extract<ObjectOptions, { 'qom-type': 'iothread' }>;

export interface Iothread {
  /** Longest busy wait, in nanoseconds; 0: none. */
  'poll-max-ns': number;
  'poll-grow': number;
  'poll-shrink': number;
  'aio-max-batch': number;
  'thread-pool-min': number;
  'thread-pool-max': number;
}

type Parameter = keyof Iothread;

/** In the order in which they are set. */
const PARAMETERS: readonly Parameter[] = [
  'aio-max-batch',
  'thread-pool-min',
  'thread-pool-max',
  'poll-max-ns',
  'poll-grow',
  'poll-shrink',
];

const INT64_MAX = '9223372036854775807';

function checkRange(name: Parameter, value: number): number {
  if (value < 0) throw new BlockError(`${name} value must be in range [0, ${INT64_MAX}]`);
  return value;
}

function checkPool(thread: Iothread): void {
  const { 'thread-pool-min': min, 'thread-pool-max': max } = thread;
  if (max === 0 || min > max) throw new BlockError('bad thread-pool-min/thread-pool-max values');
}

/** Makes an iothread record; qom-set changes its parameters, and an invalid change leaves them as they were. */
export function createIothread(options: IothreadOptions): { iothread: Iothread; qom: QomObject } {
  const iothread: Iothread = {
    'poll-max-ns': 32768,
    'poll-grow': 0,
    'poll-shrink': 0,
    'aio-max-batch': 0,
    'thread-pool-min': 0,
    'thread-pool-max': 64,
  };
  for (const name of PARAMETERS) {
    const value = options[name];
    if (value !== undefined) iothread[name] = checkRange(name, value);
  }
  checkPool(iothread);

  const accessor = (name: Parameter): QomAccessor => ({
    // A number this large has been rounded up; the value meant is the largest there is.
    get: () => (iothread[name] >= 2 ** 63 ? BigInt(INT64_MAX) : iothread[name]),
    set: (input) => {
      const value = checkRange(name, expectInteger(name, input));
      checkPool({ ...iothread, [name]: value });
      iothread[name] = value;
    },
  });
  const accessors = Object.fromEntries(PARAMETERS.map((name) => [name, accessor(name)]));
  return { iothread, qom: { typeName: 'iothread', accessors } };
}
