/**
 * The debug mode of the graph lock: QBLOCKD_DEBUG_GRAPH=1 in the environment checks every access to an edge list.
 *
 * Lists are written to by the holder of the write lock only. They are read by him, by requests whose guard is still
 * valid, and by monitor code. Who is who is followed through awaits: an I/O function runs in the context of the guard
 * it was given, monitor code in that of its command. Whoever else looks is named, with the way he came, on stderr, and gets
 * an error. Without the variable nothing here runs.
 */

import { AsyncLocalStorage } from 'node:async_hooks';
import { InvariantError } from '../../errors/error.ts';
import type { BlockChild } from './node.ts';

/** Whether the debug mode is on; constant for the life of the process. */
export const debuggingGraph = process.env.QBLOCKD_DEBUG_GRAPH === '1';

/** A guard of the debug mode: dead once the lock has been given back. */
export interface DebugGuard {
  readonly kind: 'read' | 'write';
  alive: boolean;
}

type Holder = DebugGuard | 'monitor';

const holders = new AsyncLocalStorage<Holder>();

/** Runs `section` on behalf of the monitor: it may look at edges between any two awaits. */
export function asMonitor<T>(section: () => T): T {
  return debuggingGraph ? holders.run('monitor', section) : section();
}

/** Runs `section` as a coroutine that holds `guard`. */
export function asHolder<T>(guard: unknown, section: () => T): T {
  checkAlive(guard, 'passed on');
  return holders.run(guard as DebugGuard, section);
}

/** Throws when the guard's lock has been given back already. */
export function checkAlive(guard: unknown, what: string): void {
  if (!(guard as DebugGuard).alive) offend(`a guard was ${what} after its lock had been given back`);
}

function offend(what: string): never {
  const error = new InvariantError(`graph lock: ${what}`);
  process.stderr.write(`${error.stack}\n`);
  throw error;
}

/** An edge list that checks who uses it. `name` as in "children of node 'n'"; `isWriting`: the write lock is held. */
export function checkedList(name: string, isWriting: () => boolean): BlockChild[] {
  return new Proxy<BlockChild[]>([], {
    get(list, key, receiver) {
      const holder = holders.getStore();
      if (!isWriting() && holder !== 'monitor' && holder?.alive !== true)
        offend(`${name} looked at without the lock`);
      return Reflect.get(list, key, receiver);
    },
    set(list, key, value, receiver) {
      if (!isWriting()) offend(`${name} changed without the write lock`);
      return Reflect.set(list, key, value, receiver);
    },
    deleteProperty(list, key) {
      if (!isWriting()) offend(`${name} changed without the write lock`);
      return Reflect.deleteProperty(list, key);
    },
  });
}
