/**
 * thread-context: a record of processors that threads are to run on. The original makes a thread for it, for the memory of
 * virtual machines; its daemon has no use for one, and this one runs in one thread, whose number it shows.
 */

import { readFileSync } from 'node:fs';
import type { ObjectOptions } from '../../schema/generated/types.ts';
import { E } from '../errors/errno.ts';
import { BlockError, errnoError } from '../errors/error.ts';
import { expectArray, expectInteger, type QomObject } from './qom.ts';

export type ThreadContextOptions = Extract<ObjectOptions, { 'qom-type': 'thread-context' }>;

/** A list of the kernel's, "0-3,8", as numbers; empty when there is none of that name. */
function readList(file: string): number[] {
  let text: string;
  try {
    text = readFileSync(file, 'latin1').trim();
  } catch {
    return [];
  }
  return text.split(',').flatMap((range) => {
    const [first = Number.NaN, last = first] = range.split('-').map(Number);
    return Number.isNaN(first) ? [] : Array.from({ length: last - first + 1 }, (_, at) => first + at);
  });
}

const onlineCpus = (): number[] => readList('/sys/devices/system/cpu/online');

/** Those of the processors that there are; none is an error, as for sched_setaffinity(2). */
function checkedCpus(wanted: readonly number[]): number[] {
  if (wanted.length === 0) throw new BlockError('CPU list is empty');
  const found = onlineCpus().filter((cpu) => wanted.includes(cpu));
  if (found.length === 0) throw errnoError('Setting CPU affinity failed', E.EINVAL);
  return found;
}

function cpusOfNodes(nodes: readonly number[]): number[] {
  if (nodes.length === 0) throw new BlockError('Node list is empty');
  const cpus = nodes.flatMap((node) => readList(`/sys/devices/system/node/node${node}/cpulist`));
  if (cpus.length === 0) throw new BlockError('The nodes select no CPUs');
  return checkedCpus(cpus);
}

/** Makes the record. Throws in the original's words when the processors or nodes are not there. */
export function createThreadContext(options: ThreadContextOptions): QomObject {
  const { 'cpu-affinity': cpus, 'node-affinity': nodes } = options;
  if (cpus !== undefined && nodes !== undefined)
    throw new BlockError('Mixing CPU and node affinity not supported');
  let affinity = onlineCpus();
  if (cpus !== undefined) affinity = checkedCpus(cpus);
  if (nodes !== undefined) affinity = cpusOfNodes(nodes);
  const numbers = (name: string, value: unknown): number[] =>
    expectArray(name, value).map((each) => expectInteger(name, each));
  const accessors = {
    'thread-id': { get: () => process.pid },
    'node-affinity': {
      get: () => {
        throw new BlockError("Property 'thread-context.node-affinity' is not readable");
      },
      set: (value: unknown) => {
        affinity = cpusOfNodes(numbers('node-affinity', value));
      },
    },
    'cpu-affinity': {
      get: () => affinity,
      set: (value: unknown) => {
        affinity = checkedCpus(numbers('cpu-affinity', value));
      },
    },
  };
  return { typeName: 'thread-context', accessors };
}
