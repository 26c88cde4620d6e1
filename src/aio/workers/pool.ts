/**
 * Threads that compute: a job goes to one of a few workers and works on memory of this process in place, so nothing is
 * copied or handed over, and the event loop has its turns meanwhile.
 *
 * Who asks describes a tool (a cipher with its key) once; a thread makes it when the first job for it comes. Threads are
 * started with the first job, end with the last tool, and never keep the process alive but while they work. Until one has
 * started, or where none can, the caller computes in its own turns.
 *
 * Here: threads, jobs, tools. Not here: what a thread computes (its entry, a bundle that scripts/bundle.mjs makes).
 */

import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker, type WorkerOptions } from 'node:worker_threads';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { addressOf } from '../ffi.ts';
import { type FromThread, type ToThread, Word } from './messages.ts';

/** More threads than this do not share the memory's bandwidth well. */
const MAX_THREADS = 4;

/** A job takes tens of milliseconds at most, a start some more. */
const MAX_WAIT_MS = 5000;

export interface Tool {
  readonly id: number;
  /** What the thread makes it of; copied to it. */
  readonly description: unknown;
}

interface Job {
  /** Memory that is being worked on: not to be collected meanwhile. */
  readonly buf: Buffer;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly tools: Set<number>;
  readonly jobs: Map<number, Job>;
  /** See Word. */
  readonly words: Int32Array;
  isReady: boolean;
}

interface Pool {
  readonly threads: Set<Thread>;
  /** Those, and others that are about to end: until they have. */
  readonly alive: Set<Thread>;
  readonly tools: Set<number>;
  lastId: number;
  /** A thread did not start, or died: there will be no more. */
  isBroken: boolean;
}

const pool: Pool = { threads: new Set(), alive: new Set(), tools: new Set(), lastId: 0, isBroken: false };

/** The bundle of an entry: beside the program's own, or in dist/ as seen from the sources and from what tsc makes. */
function bundleOf(entry: string): string | null {
  for (const folder of ['./', '../../../bundle/', '../../../dist/bundle/']) {
    const place = new URL(folder, import.meta.url);
    try {
      const name = readFileSync(new URL(`${entry}.name`, place), 'latin1');
      return fileURLToPath(new URL(name, place));
    } catch {
      // Not from there.
    }
  }
  return null;
}

/** The thread is no more: what it was doing has failed, and what it did not finish is in an unknown state. */
function lose(thread: Thread): void {
  pool.threads.delete(thread);
  pool.isBroken = true;
  for (const { reject } of thread.jobs.values()) reject(ioError(E.EIO));
  thread.jobs.clear();
}

function finish(thread: Thread, { job: id, error }: FromThread): void {
  if (id === 0) {
    thread.isReady = true;
    return;
  }
  const job = thread.jobs.get(id);
  thread.jobs.delete(id);
  if (thread.jobs.size === 0) thread.worker.unref();
  if (error === null) job?.resolve();
  else job?.reject(ioError(E.EIO));
}

/** At the end of the process: no thread is within a native call when it is taken down. */
function letThreadsFinish(): void {
  for (const { words } of pool.alive) Atomics.store(words, Word.stop, 1);
  for (const { words } of pool.alive) Atomics.wait(words, Word.busy, 1, MAX_WAIT_MS);
}

/** Null: the system gives no more threads. */
function tryWorker(file: string, options: WorkerOptions): Worker | null {
  try {
    return new Worker(file, options);
  } catch {
    return null;
  }
}

function startThread(entry: string): void {
  const file = bundleOf(entry);
  if (file === null) {
    pool.isBroken = true;
    return;
  }
  // Nothing of the process's own command line or environment concerns it.
  const words = new Int32Array(new SharedArrayBuffer(8));
  words[Word.busy] = 1;
  const worker = tryWorker(file, { execArgv: [], argv: [], name: entry, workerData: words });
  if (worker === null) {
    pool.isBroken = true;
    return;
  }
  const thread: Thread = { worker, tools: new Set(), jobs: new Map(), words, isReady: false };
  pool.threads.add(thread);
  if (pool.alive.size === 0) process.on('exit', letThreadsFinish);
  pool.alive.add(thread);
  worker.unref();
  worker.on('message', (message: FromThread) => finish(thread, message));
  worker.on('error', () => lose(thread));
  worker.on('exit', () => {
    pool.alive.delete(thread);
    if (pool.alive.size === 0) process.off('exit', letThreadsFinish);
    if (pool.threads.has(thread)) lose(thread);
  });
}

/** The thread with the least to do; starts another one when all have something, as long as there may be more. */
function leastBusy(entry: string): Thread | null {
  let best: Thread | null = null;
  let starting = false;
  for (const thread of pool.threads) {
    if (!thread.isReady) starting = true;
    else if (best === null || thread.jobs.size < best.jobs.size) best = thread;
  }
  const wanted = best === null || best.jobs.size > 0;
  const most = Math.min(MAX_THREADS, availableParallelism());
  if (wanted && !starting && !pool.isBroken && pool.threads.size < most) startThread(entry);
  return best;
}

/** A tool of the threads; closeTool when it is no longer needed. */
export function openTool(description: unknown): Tool {
  const tool = { id: ++pool.lastId, description };
  pool.tools.add(tool.id);
  return tool;
}

/**
 * Has a thread of `entry` use a tool on `buf` in place. Null: there is no thread just now, compute here. `job` is what the
 * tool is told. Rejects with EIO when the tool fails or the thread dies: the content of `buf` is then anything.
 */
export function runOnThread(entry: string, tool: Tool, buf: Buffer, job: object): Promise<void> | null {
  const thread = leastBusy(entry);
  if (thread === null) return null;
  const { worker, tools, jobs } = thread;
  if (!tools.has(tool.id)) {
    tools.add(tool.id);
    worker.postMessage({ kind: 'open', tool: tool.id, description: tool.description } satisfies ToThread);
  }
  const id = ++pool.lastId;
  return new Promise((resolve, reject) => {
    if (jobs.size === 0) worker.ref();
    jobs.set(id, { buf, resolve, reject });
    const place = { addr: addressOf(buf), bytes: buf.length };
    worker.postMessage({ kind: 'job', job: id, tool: tool.id, ...place, ...job } satisfies ToThread);
  });
}

/** The threads forget the tool. No job of it is under way. */
export function closeTool(tool: Tool): void {
  pool.tools.delete(tool.id);
  for (const { worker, tools } of pool.threads)
    if (tools.delete(tool.id)) worker.postMessage({ kind: 'close', tool: tool.id } satisfies ToThread);
  if (pool.tools.size > 0) return;
  // Whoever comes next starts new ones.
  for (const thread of pool.threads) {
    pool.threads.delete(thread);
    thread.worker.postMessage({ kind: 'end' } satisfies ToThread);
  }
}
