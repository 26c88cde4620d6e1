/**
 * The fuzzer: damages an image of the corpus and uses it in every way. Whatever the image, an operation works or
 * fails with a BlockError that says why; nothing else may be thrown, nothing may hang or grow without bound, an image
 * opened read-only is not written to, and an image that is refused stays as it was.
 *
 * Everything runs in memory; a case is made from its seed alone. The corpus is corpus/*.gz (see make.sh there).
 */

import { appendFileSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { gunzipSync } from 'node:zlib';
import type { AioEngine } from '../../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import type { BlockDriver, OpenPurpose } from '../../../src/block/contract/driver.ts';
import type { LazyDriver } from '../../../src/block/contract/face.ts';
import { Perm, Req } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { co, wrapped } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { BlockError } from '../../../src/errors/error.ts';
import { limitMs } from '../../patience.ts';
import { createDisk, type FuzzDisk, fuzzDriver, readDisk } from '../memory/fuzz-disk.ts';
import { mutate } from './fuzz-mutate.ts';
import { createRandom, type Random } from './random.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
/** What a case may hold in buffers at its end: the largest tables the format allows are 32, 8 and 64 MiB. */
const MAX_EXTERNAL_BYTES = 600 * MiB;
/** What one opening, or one operation, may read: tables and caches, but not in a loop. */
const MAX_READ_BYTES = 1024 * MiB;
const MAX_CASE_MS = 15_000;
const READ_SAMPLE_BYTES = MiB;
const MAX_EXTENTS = 300;

export interface Base {
  readonly name: string;
  readonly image: Buffer;
}

export function loadCorpus(): readonly Base[] {
  const dir = path.join(import.meta.dirname, 'corpus');
  return readdirSync(dir)
    .filter((file) => file.endsWith('.gz'))
    .sort()
    .map((file) => ({ name: file.slice(0, -3), image: gunzipSync(readFileSync(path.join(dir, file))) }));
}

/** Something that must not happen. */
export class FuzzFailure extends Error {}

interface Case {
  readonly engine: AioEngine;
  readonly disk: FuzzDisk;
  readonly random: Random;
  /** What was done, for the report. */
  readonly log: string[];
}

/** With FUZZ_TRACE=FILE everything is written there before it is done: for what never ends. */
const traceFile = process.env.FUZZ_TRACE;
const trace = traceFile === undefined ? null : (text: string): void => appendFileSync(traceFile, `${text}\n`);

/** The lowest byte of the header's incompatible features. */
function incompatibleBits(disk: FuzzDisk): number {
  const byte = Buffer.alloc(1);
  readDisk(disk, 79, byte);
  return byte[0]!;
}

/** Runs `step`; a BlockError is all right and gives null. */
async function attempt<T>({ log, disk }: Case, what: string, step: () => Promise<T>): Promise<T | null> {
  const before = disk.bytesRead;
  log.push(what);
  trace?.(what);
  let result: T | null = null;
  try {
    result = await step();
  } catch (error) {
    if (!(error instanceof BlockError) || error.message === '') {
      throw new FuzzFailure(`${what}: ${(error as Error)?.stack ?? String(error)}`, { cause: error });
    }
    log.push(`  ${error.message}`);
  }
  const read = disk.bytesRead - before;
  if (read > MAX_READ_BYTES) throw new FuzzFailure(`${what} read ${read} bytes`);
  return result;
}

const OWNER = { describe: () => 'the fuzzer', drainedBegin: () => undefined, drainedEnd: () => undefined };

interface Session {
  readonly node: BlockNode;
  readonly backend: BlockBackend;
}

/** Opens the image, lets `use` do its work, and closes it; whether it could be opened. */
async function withImage(
  c: Case,
  options: object,
  purpose: OpenPurpose,
  use: (session: Session) => Promise<void>,
): Promise<boolean> {
  const side = createDisk(Buffer.alloc(192 * KiB, 7));
  const known: Record<string, BlockDriver | LazyDriver> = {
    ...drivers,
    image: fuzzDriver('image', c.disk),
    // Whatever file the image names.
    file: fuzzDriver('file', side),
  };
  const layer = new BlockLayer({ engine: c.engine, events: { emit: () => undefined }, drivers: known });
  const readOnly = 'read-only' in options;
  const all = { driver: 'qcow2', 'node-name': 'node', file: { driver: 'image' }, ...options };
  const before = c.disk.writes;
  const dirty = (incompatibleBits(c.disk) & 1) !== 0;
  const node = await attempt(c, `open ${JSON.stringify(options)} ${purpose}`, () =>
    openFromOptions(layer, all, purpose),
  );
  if (node === null) {
    // A dirty image is repaired before anything else; one found to be corrupt is marked.
    const marked = dirty || (incompatibleBits(c.disk) & 2) !== 0;
    if (c.disk.writes !== before && !marked) throw new FuzzFailure('a refused image was written to');
    return false;
  }
  const perm = readOnly ? Perm.consistentRead : Perm.all;
  const backend = await layer.createBackend(node, { perm, shared: Perm.all }, OWNER);
  try {
    await use({ node, backend });
  } finally {
    await attempt(c, 'close', () => backend.close());
    await attempt(c, 'close all', () => layer.closeAll());
  }
  if (readOnly && c.disk.writes !== before) throw new FuzzFailure('a read-only image was written to');
  return true;
}

function buffer(bytes: number, fill = 0): ReturnType<typeof vectorOf> {
  const mem = allocateIoMemory(bytes);
  mem.buf.fill(fill);
  return vectorOf(mem);
}

async function readAll(c: Case, { node, backend }: Session): Promise<void> {
  const total = node.totalBytes;
  for (let at = 0; at < Math.min(total, READ_SAMPLE_BYTES); ) {
    const bytes = Math.min(64 * KiB, total - at);
    await attempt(c, `read ${at}`, () => backend.preadv(at, bytes, buffer(bytes), 0));
    at += bytes;
  }
  const last = Math.max(0, total - 4096);
  const bytes = Math.min(4096, total);
  await attempt(c, `read ${last}`, () => backend.preadv(last, bytes, buffer(bytes), 0));
}

async function statusOfAll(c: Case, { node }: Session): Promise<void> {
  let extents = 0;
  for (let at = 0; at < node.totalBytes && extents < MAX_EXTENTS; extents++) {
    const bytes = Math.min(node.totalBytes - at, 2 ** 30);
    const status = await attempt(c, `status ${at}`, () => wrapped.blockStatus(node, true, at, bytes));
    if (status !== null && !(status.bytes > 0 && status.bytes <= bytes))
      throw new FuzzFailure(`block status of ${status.bytes} bytes`);
    at += status?.bytes ?? 64 * KiB;
  }
}

function check(c: Case, node: BlockNode, repair: boolean): Promise<unknown> {
  const request = { fixLeaks: repair, fixErrors: repair, report: () => undefined };
  return attempt(c, `check ${repair}`, () => wrapped.check(node, request));
}

async function changeSnapshots(c: Case, { node }: Session): Promise<void> {
  const { snapshots } = node.driver;
  if (snapshots === undefined) return;
  const { random } = c;
  const known = (await attempt(c, 'list', async () => snapshots.list(node))) ?? [];
  await attempt(c, 'snapshot', () =>
    node.layer.graphLock.withRead(async (guard) => {
      const one = known.length > 0 ? random.pick(known) : null;
      const action = random.below(3);
      if (action === 1 && one !== null) return snapshots.apply(node, guard, one.id);
      if (action === 2 && one !== null) return snapshots.delete(node, guard, one.id, null);
      const time = { dateSeconds: 1, dateNanoseconds: 0, vmClockNanoseconds: 0n, icount: null };
      return snapshots.create(node, guard, { name: `n${random.below(100)}`, vmStateBytes: 0, ...time });
    }),
  );
}

/** Changes of all kinds, some of them at the same time. */
async function change(c: Case, session: Session): Promise<void> {
  const { node, backend } = session;
  const { random } = c;
  const running: Promise<unknown>[] = [];
  for (let left = 12; left > 0; left--) {
    const total = node.totalBytes;
    const within = Math.min(total, random.pick([256 * KiB, MiB, total]));
    const unit = random.pick([1, 512, 4096]);
    const offset = within === 0 ? 0 : Math.floor((random.below(within) % within) / unit) * unit;
    const bytes = Math.min(total - offset, random.pick([1, 512, 4096, 20 * KiB, 64 * KiB]));
    const at = `${offset}+${bytes}`;
    const flags = random.pick([0, Req.mayUnmap]);
    switch (random.below(9)) {
      case 0:
        running.push(attempt(c, 'flush', () => backend.flush()));
        break;
      case 1:
        running.push(attempt(c, `zero ${at}`, () => backend.pwriteZeroes(offset, bytes, flags)));
        break;
      case 2:
        running.push(attempt(c, `discard ${at}`, () => backend.pdiscard(offset, bytes)));
        break;
      case 3: {
        const { clusterSizeBytes } = await node.layer.graphLock.withRead((guard) => co.getInfo(node, guard));
        const start = offset - (offset % clusterSizeBytes);
        const length = Math.min(clusterSizeBytes, total - start);
        running.push(
          attempt(c, `compress ${start}`, () =>
            node.layer.graphLock.withRead((guard) =>
              co.pwritevCompressed(node, guard, start, length, buffer(length, 5)),
            ),
          ),
        );
        break;
      }
      case 4:
        await Promise.all(running.splice(0));
        if (random.below(2) === 0) await changeSnapshots(c, session);
        else {
          const length = random.pick([total + 64 * KiB, Math.floor(total / 2), total + 1]);
          await attempt(c, `truncate ${length}`, () => backend.truncate(length, true, 'off'));
        }
        break;
      default:
        running.push(attempt(c, `write ${at}`, () => backend.pwritev(offset, bytes, buffer(bytes, 9), 0)));
    }
  }
  await Promise.all(running);
}

const WRITABLE: readonly object[] = [
  {},
  { discard: 'unmap' },
  { discard: 'unmap', 'pass-discard-other': true, 'l2-cache-entry-size': 512 },
  { 'overlap-check': 'all' },
  { 'overlap-check': 'none' },
  { 'lazy-refcounts': true },
  { 'l2-cache-size': 0, 'refcount-cache-size': 0 },
];

async function useImage(c: Case): Promise<void> {
  const { random } = c;
  await withImage(c, { 'read-only': true }, 'io', async (session) => {
    await attempt(c, 'info', async () => session.node.driver.specificInfo?.(session.node));
    await readAll(c, session);
    await statusOfAll(c, session);
  });
  await withImage(c, { 'read-only': true }, 'check', ({ node }) =>
    check(c, node, false).then(() => undefined),
  );
  await withImage(c, random.pick(WRITABLE), 'io', async (session) => {
    await change(c, session);
    await readAll(c, session);
  });
  await withImage(c, {}, 'check', ({ node }) => check(c, node, true).then(() => undefined));
  await withImage(c, { discard: 'unmap' }, 'io', async (session) => {
    await readAll(c, session);
    await change(c, session);
  });
}

/** Runs the case of a seed on an image of the corpus. Throws FuzzFailure, with everything that was done. */
export async function runCase(engine: AioEngine, corpus: readonly Base[], seed: number): Promise<void> {
  const random = createRandom(seed);
  const base = random.pick(corpus);
  const log: string[] = [];
  const image = mutate(base.image, random, log);
  await runImage(engine, image, random, log, `seed ${seed}, image ${base.name}`);
}

/** Rejects when a case has waited too long; it must not wait for anything but the turns of the disk. */
function hang(): Promise<never> {
  return new Promise((_, reject) => {
    setTimeout(() => reject(new FuzzFailure('hangs')), limitMs(MAX_CASE_MS)).unref();
  });
}

/** Uses a damaged image in every way. */
export async function runImage(
  engine: AioEngine,
  image: Buffer,
  random: Random,
  log: string[],
  name: string,
): Promise<void> {
  const c: Case = { engine, disk: createDisk(image), random, log };
  trace?.(`${name}: ${log.join('; ')}`);
  let unhandled: unknown = null;
  const onUnhandled = (error: unknown): void => {
    unhandled ??= error;
  };
  process.on('unhandledRejection', onUnhandled);
  try {
    await Promise.race([useImage(c), hang()]);
    await new Promise((resolve) => setImmediate(resolve));
    if (unhandled !== null)
      throw new FuzzFailure(`unhandled: ${(unhandled as Error).stack ?? String(unhandled)}`);
    const { external } = process.memoryUsage();
    if (external > MAX_EXTERNAL_BYTES) throw new FuzzFailure(`${external} bytes of buffers`);
  } catch (error) {
    throw new FuzzFailure(`${name}: ${(error as Error).message}\n${log.join('\n')}`, { cause: error });
  } finally {
    process.off('unhandledRejection', onUnhandled);
  }
}

/**
 * Ends the process, saying where it hangs, when no case has ended for `limitMs`: a loop that never waits cannot be
 * ended otherwise. `begin` notes a new case.
 */
export function startWatchdog(limitMs: number): { begin(seed: number): void; stop(): void } {
  const shared = new Int32Array(new SharedArrayBuffer(8));
  const code = `
    const { workerData: { shared, limitMs } } = require('node:worker_threads');
    let last = -1;
    let since = Date.now();
    setInterval(() => {
      const count = Atomics.load(shared, 0);
      if (count !== last) { last = count; since = Date.now(); }
      else if (Date.now() - since > limitMs) {
        require('node:fs').writeSync(2, 'fuzz: seed ' + Atomics.load(shared, 1) + ' hangs\\n');
        process.kill(process.pid, 'SIGKILL');
      }
    }, 200);`;
  const worker = new Worker(code, { eval: true, workerData: { shared, limitMs } });
  worker.unref();
  return {
    begin(seed) {
      Atomics.store(shared, 1, seed);
      Atomics.add(shared, 0, 1);
    },
    stop: () => void worker.terminate(),
  };
}
