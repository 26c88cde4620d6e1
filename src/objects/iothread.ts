/**
 * The objects of event loops, iothread and main-loop: records of their parameters. All I/O runs on the main thread's loop
 * so far, with an engine of its own, so that naming an iothread or setting a parameter has no effect beyond the checks.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { expectInteger, type QomAccessor, type QomAccessors, type QomObject } from './qom.ts';

export type IothreadOptions = Extract<ObjectOptions, { 'qom-type': 'iothread' }>;
export type MainLoopOptions = Extract<ObjectOptions, { 'qom-type': 'main-loop' }>;

export interface Iothread {
  /** Longest busy wait, in nanoseconds; 0: none. */
  'poll-max-ns': number;
  'poll-grow': number;
  'poll-shrink': number;
  /** Weight of the newest measurement; 0: the default, 3. */
  'poll-weight': number;
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
  'poll-weight',
];

const INT64_MAX = '9223372036854775807';

function checkRange(name: Parameter, value: number): number {
  if (value < 0) throw new BlockError(`${name} value must be in range [0, ${INT64_MAX}]`);
  return value;
}

function checkPool(thread: EventLoop): void {
  const { 'thread-pool-min': min, 'thread-pool-max': max } = thread;
  if (max === 0 || min > max) throw new BlockError('bad thread-pool-min/thread-pool-max values');
}

type EventLoop = Pick<Iothread, 'aio-max-batch' | 'thread-pool-min' | 'thread-pool-max'>;

const EVENT_LOOP_DEFAULTS: EventLoop = { 'aio-max-batch': 0, 'thread-pool-min': 0, 'thread-pool-max': 64 };

/** Sets the parameters given; qom-set changes them, and an invalid change leaves them as they were. */
function parametersOf<T extends EventLoop>(
  loop: T,
  names: readonly (keyof T & Parameter)[],
  options: Partial<Record<keyof T, number | undefined>>,
): QomAccessors {
  const set = (name: keyof T & Parameter, value: number): void => {
    (loop as Record<string, number>)[name] = checkRange(name, value);
  };
  for (const name of names) {
    const value = options[name];
    if (value !== undefined) set(name, value);
  }
  checkPool(loop);
  const accessor = (name: keyof T & Parameter): QomAccessor => ({
    // A number this large has been rounded up; the value meant is the largest there is.
    get: () => (Number(loop[name]) >= 2 ** 63 ? BigInt(INT64_MAX) : loop[name]),
    set: (input) => {
      const value = checkRange(name, expectInteger(name, input));
      checkPool({ ...loop, [name]: value });
      set(name, value);
    },
  });
  return Object.fromEntries(names.map((name) => [name, accessor(name)]));
}

/** Makes an iothread record. */
export function createIothread(options: IothreadOptions): { iothread: Iothread; qom: QomObject } {
  const iothread: Iothread = {
    ...EVENT_LOOP_DEFAULTS,
    'poll-max-ns': 32768,
    'poll-grow': 0,
    'poll-shrink': 0,
    'poll-weight': 0,
  };
  const accessors = parametersOf(iothread, PARAMETERS, options);
  return { iothread, qom: { typeName: 'iothread', accessors } };
}

/** Makes the record of the main loop. */
export function createMainLoop(options: MainLoopOptions): QomObject {
  const accessors = parametersOf(
    { ...EVENT_LOOP_DEFAULTS },
    ['aio-max-batch', 'thread-pool-min', 'thread-pool-max'],
    options,
  );
  return { typeName: 'main-loop', accessors };
}
