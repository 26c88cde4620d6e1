/**
 * The fuzzer of image formats: damages an image of the corpus and uses it in every way. Whatever the image, an operation
 * works or fails with a BlockError that says why; nothing else may be thrown, nothing may hang or grow without bound, an
 * image opened read-only is not written to, and nothing is opened but files whose names the image holds.
 *
 * Everything runs in memory, also the files that an image names; a case is made from its seed alone. The corpus is
 * corpus/*.gz (see make.sh there), named NAME.FORMAT.gz.
 */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { gunzipSync } from 'node:zlib';
import type { AioEngine } from '../../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
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
import { createDisk, type FuzzDisk, fuzzDriver } from '../memory/fuzz-disk.ts';
import { createRandom, type Random } from '../qcow2/random.ts';
import { ALWAYS_FIXED, FIXERS } from './fuzz-checksums.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const MAX_EXTERNAL_BYTES = 400 * MIB;
/** The largest buffer that any image of this size may ask for. */
const MAX_BUFFER_BYTES = 40 * MIB;
/** What one opening, or one operation, may read. */
const MAX_READ_BYTES = 512 * MIB;
const MAX_CASE_MS = 15_000;
const MAX_EXTENTS = 200;

export interface FormatBase {
  readonly name: string;
  readonly format: string;
  readonly image: Buffer;
  /** Where damage is done. */
  readonly sectors: readonly number[];
  /** A copy that each case damages and puts right again: cases run one after the other. */
  readonly damaged: Buffer;
}

/** The corpus of some formats. */
export function loadFormats(formats: readonly string[]): readonly FormatBase[] {
  const folder = path.join(import.meta.dirname, 'corpus');
  return readdirSync(folder)
    .filter((file) => file.endsWith('.gz'))
    .sort()
    .map((file) => ({ file, format: path.extname(file.slice(0, -3)).slice(1) }))
    .filter(({ format }) => formats.includes(format))
    .map(({ file, format }) => {
      const image = gunzipSync(readFileSync(path.join(folder, file)));
      return { name: file, format, image, sectors: sectorsOf(image), damaged: Buffer.from(image) };
    });
}

export class FormatFuzzFailure extends Error {}

/** Sectors that hold anything, the first ones more than once: that is where headers are. */
function sectorsOf(image: Buffer): readonly number[] {
  const zero = Buffer.alloc(512);
  const all: number[] = [];
  for (let at = 0; at + 512 <= image.length; at += 512)
    if (!image.subarray(at, at + 512).equals(zero)) all.push(at);
  const few = all.filter((at) => {
    const sector = image.subarray(at, at + 512);
    // Data of the guest is one byte all over.
    return !sector.every((byte) => byte === sector[0]);
  });
  const last = Math.max(0, image.length - 512);
  return [0, 0, 512, last, ...few, ...few.slice(0, 16)];
}

function interesting(image: Buffer, random: Random): bigint {
  switch (random.below(6)) {
    case 0:
      return BigInt(random.below(9));
    case 1:
      return 1n << BigInt(random.below(64));
    case 2:
      return (1n << BigInt(random.below(64))) - BigInt(random.below(3));
    case 3:
      return BigInt(image.length) + BigInt(random.below(3) - 1) * 512n;
    case 4:
      return BigInt(Math.floor(image.length / 512)) + BigInt(random.below(3) - 1);
    default:
      return BigInt(random.below(2 ** 31));
  }
}

/** A damaged copy, there until the next one is made; what has been done to it is in `log`. */
function mutateFormat(base: FormatBase, random: Random, log: string[]): Buffer {
  const { sectors } = base;
  base.image.copy(base.damaged);
  let image = base.damaged;
  for (let left = 1 + random.below(4); left > 0; left--) {
    const at = random.pick(sectors) + random.below(512);
    const bytes = random.pick([1, 2, 4, 4, 8, 8]);
    const aligned = at - (at % bytes);
    if (aligned + 8 > image.length) continue;
    const kind = random.below(10);
    if (kind < 6) {
      const value = Buffer.alloc(8);
      const number = BigInt.asUintN(64, interesting(base.image, random));
      if (random.below(2) === 0) value.writeBigUInt64LE(number);
      else value.writeBigUInt64BE((number << BigInt(64 - 8 * bytes)) & 0xffffffffffffffffn);
      value.copy(image, aligned, 0, bytes);
      log.push(`${bytes} bytes at ${aligned}: ${number}`);
    } else if (kind === 6) {
      image[at]! ^= 1 << random.below(8);
      log.push(`bit at ${at}`);
    } else if (kind === 7) {
      const from = random.pick(sectors);
      if (from + 512 > image.length) continue;
      image.copy(image, at - (at % 512), from, from + 512);
      log.push(`sector ${from} to ${at - (at % 512)}`);
    } else if (kind === 8) {
      const length = 1 << random.below(11);
      image.fill(random.pick([0, 255]), at, Math.min(image.length, at + length));
      log.push(`fill ${length} at ${at}`);
    } else {
      const length = random.pick([random.below(image.length), at - (at % 512), at]);
      image = image.subarray(0, length);
      log.push(`cut at ${length}`);
    }
  }
  if (random.below(4) > 0 || ALWAYS_FIXED.includes(base.format)) FIXERS[base.format]?.(image);
  return image;
}

/**
 * Says what an opened file is called when the image does not name it. Names may come in any encoding of the formats;
 * their last part is what stays when a folder is put before it.
 */
function unnamedFile(image: Buffer, filename: unknown): string | null {
  if (typeof filename !== 'string') return String(filename);
  const last = filename.slice(filename.lastIndexOf('/') + 1);
  const encoded = [Buffer.from(last), Buffer.from(last, 'utf16le'), Buffer.from(last, 'utf16le').swap16()];
  // A name that is no text comes back changed.
  return last.includes('\ufffd') || encoded.some((name) => image.includes(name)) ? null : filename;
}

interface Case {
  readonly engine: AioEngine;
  /** What is opened. */
  readonly image: Buffer;
  /** What it finds under every name that it names; null: one disk for all. */
  readonly named: FuzzDisk | null;
  readonly format: string;
  readonly disk: FuzzDisk;
  readonly random: Random;
  readonly log: string[];
}

async function attempt<T>({ log, disk }: Case, what: string, step: () => Promise<T>): Promise<T | null> {
  const before = disk.bytesRead;
  log.push(what);
  let result: T | null = null;
  try {
    result = await step();
  } catch (error) {
    if (!(error instanceof BlockError) || error.message === '')
      throw new FormatFuzzFailure(`${what}: ${(error as Error)?.stack ?? String(error)}`, { cause: error });
    log.push(`  ${error.message}`);
  }
  const read = disk.bytesRead - before;
  if (read > MAX_READ_BYTES) throw new FormatFuzzFailure(`${what} read ${read} bytes`);
  return result;
}

const OWNER = { describe: () => 'the fuzzer', drainedBegin: () => undefined, drainedEnd: () => undefined };

const MAX_REQUEST_BYTES = 64 * KIB;

function memoryOf(fill: number): ReturnType<typeof allocateIoMemory> {
  const memory = allocateIoMemory(MAX_REQUEST_BYTES);
  memory.buf.fill(fill);
  return memory;
}

/** Where reads go, one at a time. */
const READ = memoryOf(0);
/** What is written, and what is written compressed: nobody changes it. */
const WRITTEN = memoryOf(9);
const COMPRESSED = memoryOf(5);

/** The passphrase of every encrypted image of the corpus. */
const FUZZ_SECRET = 'secret';
/** Opens what corpus/NAME-extent.vmdk.gz holds. */
const DESCRIPTOR = Buffer.from(
  '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="seSparse"\nRW 32768 SESPARSE "extent.vmdk"\n',
);
const NAMED_CONTENT = Buffer.alloc(192 * KIB, 7);

/** Options that encrypted images need. */
function secretOf({ format, image }: Case, purpose: OpenPurpose): object {
  if (format === 'luks') return purpose === 'info' ? {} : { 'key-secret': 's' };
  const isEncrypted = format === 'qcow' && image.length > 40 && image.readUInt32BE(36) !== 0;
  return isEncrypted ? { encrypt: { format: 'aes', 'key-secret': 's' } } : {};
}

/** The drivers, but those that reach beyond the files of the test: who opens one is put down in `opened`. */
function withoutProtocols(opened: string[]): Record<string, BlockDriver | LazyDriver> {
  const entries = Object.entries<BlockDriver | LazyDriver>(drivers).map(([name, face]) => {
    if (face.kind !== 'protocol') return [name, face] as const;
    const { kind, parseName, namePrefixes } = face;
    const refusing: BlockDriver = {
      name,
      kind,
      supportedWriteFlags: 0,
      supportedZeroFlags: 0,
      ...(parseName === undefined ? {} : { parseName }),
      ...(namePrefixes === undefined ? {} : { namePrefixes }),
      async open() {
        opened.push(name);
        throw new BlockError('No way out');
      },
    };
    return [name, refusing] as const;
  });
  return Object.fromEntries(entries);
}

async function withNode(
  c: Case,
  options: object,
  purpose: OpenPurpose,
  use: (node: BlockNode) => Promise<void>,
): Promise<void> {
  const unnamed: string[] = [];
  const other = fuzzDriver('file', c.named ?? createDisk(NAMED_CONTENT));
  const known: Record<string, BlockDriver | LazyDriver> = {
    ...withoutProtocols(unnamed),
    image: fuzzDriver('image', c.named === null ? c.disk : createDisk(c.image)),
    // Whatever file the image names.
    file: {
      ...other,
      async open(node, context) {
        const name = unnamedFile(c.image, (context.options as { filename?: unknown }).filename);
        if (name !== null) unnamed.push(name);
        return other.open(node, context);
      },
    },
  };
  const layer = new BlockLayer({
    engine: c.engine,
    events: { emit: () => undefined },
    drivers: known,
    secret: () => Buffer.from(FUZZ_SECRET),
  });
  const readOnly = 'read-only' in options;
  const before = c.disk.writes;
  const node = await attempt(c, `open ${JSON.stringify(options)} ${purpose}`, () =>
    openFromOptions(
      layer,
      {
        driver: c.format,
        'node-name': 'node',
        file: { driver: 'image' },
        ...secretOf(c, purpose),
        ...options,
      },
      purpose,
    ),
  );
  if (unnamed.length > 0) throw new FormatFuzzFailure(`opened ${unnamed.join(', ')}`);
  if (node === null) return;
  const perm = readOnly || node.readOnly ? Perm.consistentRead : Perm.all;
  const backend = await layer.createBackend(node, { perm, shared: Perm.all }, OWNER);
  try {
    await use(node);
  } finally {
    await attempt(c, 'close', () => backend.close());
    await attempt(c, 'close all', () => layer.closeAll());
  }
  if (readOnly && c.disk.writes !== before) throw new FormatFuzzFailure('a read-only image was written to');
}

async function readSome(c: Case, node: BlockNode): Promise<void> {
  const total = node.totalBytes;
  for (const start of [0, Math.floor(total / 2 / 512) * 512, Math.max(0, total - 4 * 64 * KIB)]) {
    for (let at = start; at < Math.min(total, start + 4 * 64 * KIB); ) {
      const bytes = Math.min(MAX_REQUEST_BYTES, total - at);
      await attempt(c, `read ${at}`, () => wrapped.preadv(node, at, bytes, vectorOf(READ, 0, bytes), 0));
      at += bytes;
    }
  }
  let extents = 0;
  for (let at = 0; at < total && extents < MAX_EXTENTS; extents++) {
    const bytes = Math.min(total - at, 2 ** 30);
    const status = await attempt(c, `status ${at}`, () => wrapped.blockStatus(node, true, at, bytes));
    if (status !== null && !(status.bytes > 0 && status.bytes <= bytes))
      throw new FormatFuzzFailure(`block status of ${status.bytes} bytes`);
    at += status?.bytes ?? 64 * KIB;
  }
}

async function change(c: Case, node: BlockNode): Promise<void> {
  const { random } = c;
  const running: Promise<unknown>[] = [];
  for (let left = 10; left > 0; left--) {
    const total = node.totalBytes;
    const within = Math.min(total, random.pick([256 * KIB, MIB, total]));
    const unit = random.pick([1, 512, 4096, 64 * KIB]);
    const offset = within === 0 ? 0 : Math.floor((random.below(within) % within) / unit) * unit;
    const bytes = Math.min(total - offset, random.pick([1, 512, 4096, 20 * KIB, MAX_REQUEST_BYTES]));
    const at = `${offset}+${bytes}`;
    const kind = random.below(8);
    const { discardUnmap } = node.settings;
    if (kind === 0) running.push(attempt(c, 'flush', () => wrapped.flush(node)));
    else if (kind === 1)
      running.push(
        attempt(c, `zero ${at}`, () =>
          wrapped.pwriteZeroes(node, offset, bytes, discardUnmap ? Req.mayUnmap : 0),
        ),
      );
    else if (kind === 2)
      running.push(attempt(c, `discard ${at}`, () => wrapped.pdiscard(node, offset, bytes)));
    else if (kind === 3)
      running.push(
        attempt(c, `compress ${at}`, () =>
          node.layer.graphLock.withRead((guard) =>
            co.pwritevCompressed(node, guard, offset, bytes, vectorOf(COMPRESSED, 0, bytes)),
          ),
        ),
      );
    else
      running.push(
        attempt(c, `write ${at}`, () => wrapped.pwritev(node, offset, bytes, vectorOf(WRITTEN, 0, bytes), 0)),
      );
  }
  await Promise.all(running);
}

async function useImage(c: Case): Promise<void> {
  const readOnly = { 'read-only': true };
  await withNode(c, readOnly, 'info', async (node) => {
    await attempt(c, 'info', async () => node.driver.specificInfo?.(node));
  });
  await withNode(c, readOnly, 'io', (node) => readSome(c, node));
  const request = { fixLeaks: false, fixErrors: false, report: () => undefined };
  await withNode(c, readOnly, 'check', async (node) => {
    await attempt(c, 'check', () => wrapped.check(node, request));
  });
  await withNode(c, { discard: 'unmap' }, 'io', async (node) => {
    await change(c, node);
    await readSome(c, node);
  });
  await withNode(c, {}, 'check', async (node) => {
    await attempt(c, 'repair', () => wrapped.check(node, { ...request, fixLeaks: true, fixErrors: true }));
  });
  await withNode(c, {}, 'io', (node) => change(c, node));
}

/** Watches the sizes of buffers; returns the largest one that was asked for so far. */
function watchBuffers(): () => number {
  let largest = 0;
  for (const name of ['alloc', 'allocUnsafe', 'allocUnsafeSlow'] as const) {
    const allocate = Buffer[name].bind(Buffer) as (bytes: number, ...rest: never[]) => Buffer;
    Buffer[name] = ((bytes: number, ...rest: never[]) => {
      largest = Math.max(largest, bytes);
      return allocate(bytes, ...rest);
    }) as never;
  }
  return () => {
    const seen = largest;
    largest = 0;
    return seen;
  };
}

const largestBuffer = watchBuffers();

/** What nobody holds does not count. */
function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
}

function hang(): Promise<never> {
  return new Promise((_, reject) => {
    setTimeout(() => reject(new FormatFuzzFailure('hangs')), limitMs(MAX_CASE_MS)).unref();
  });
}

/** Runs the case of a seed; throws FormatFuzzFailure with everything that was done. */
export async function runFormatCase(
  engine: AioEngine,
  corpus: readonly FormatBase[],
  seed: number,
): Promise<void> {
  const random = createRandom(seed);
  const base = random.pick(corpus);
  const log: string[] = [];
  const image = mutateFormat(base, random, log);
  const disk = createDisk(image);
  const c: Case = {
    ...{ engine, format: base.format, disk, random, log },
    ...(base.name.includes('-extent.') ? { image: DESCRIPTOR, named: disk } : { image, named: null }),
  };
  let unhandled: unknown = null;
  const onUnhandled = (error: unknown): void => {
    unhandled ??= error;
  };
  process.on('unhandledRejection', onUnhandled);
  try {
    await Promise.race([useImage(c), hang()]);
    await new Promise((resolve) => setImmediate(resolve));
    if (unhandled !== null)
      throw new FormatFuzzFailure(`unhandled: ${(unhandled as Error).stack ?? String(unhandled)}`);
    const largest = largestBuffer();
    if (largest > MAX_BUFFER_BYTES) throw new FormatFuzzFailure(`a buffer of ${largest} bytes`);
    // Asking takes a millisecond.
    if (seed % 16 !== 0) return;
    let { external } = process.memoryUsage();
    if (external > MAX_EXTERNAL_BYTES) {
      collectGarbage();
      ({ external } = process.memoryUsage());
    }
    if (external > MAX_EXTERNAL_BYTES) throw new FormatFuzzFailure(`${external} bytes of buffers`);
  } catch (error) {
    throw new FormatFuzzFailure(
      `seed ${seed}, ${base.name}: ${(error as Error).message}\n${log.join('\n')}`,
      {
        cause: error,
      },
    );
  } finally {
    process.off('unhandledRejection', onUnhandled);
  }
}
