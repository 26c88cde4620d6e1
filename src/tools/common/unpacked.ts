/**
 * Raw images compressed as a whole (gzip, xz, zstd) as a source of `convert`: a node that can be read from front to
 * back, once.
 *
 * The length has to be known before the target is made: xz files say it, the others are unpacked twice, the first time
 * only to be counted, which finds damage before anything is written. gzip is unpacked by Node's zlib, xz and zstd by
 * the programs of these names.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, createReadStream, openSync, readSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { copyToVector, fillVector, type IoVector, sliceVector } from '../../aio/memory.ts';
import type { BlockDriver } from '../../block/contract/driver.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { openFromOptions } from '../../block/open/open.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';

export type Packing = 'gzip' | 'xz' | 'zstd';

const MAGICS: readonly (readonly [Packing, Buffer])[] = [
  ['gzip', Buffer.from([0x1f, 0x8b, 0x08])],
  ['xz', Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00])],
  ['zstd', Buffer.from([0x28, 0xb5, 0x2f, 0xfd])],
  // A frame to be skipped, which pzstd puts in front; its first byte has the lower half for the writer's own use.
  ['zstd', Buffer.from([0x50, 0x2a, 0x4d, 0x18])],
];
const PROBE_BYTES = 2048;

/** How the file is compressed, by its name and its first bytes; null: it is not, or is no file. */
export function packingOf(filename: string): Packing | null {
  if (!/\.(?:gz|xz|zst)$/i.test(filename)) return null;
  const start = Buffer.alloc(6);
  try {
    const fd = openSync(filename, 'r');
    try {
      readSync(fd, start, 0, start.length, 0);
    } finally {
      closeSync(fd);
    }
  } catch {
    return null;
  }
  if (start.readUInt32LE(0) >>> 4 === 0x184d2a5) start[0] = 0x50;
  return MAGICS.find(([, magic]) => start.subarray(0, magic.length).equals(magic))?.[0] ?? null;
}

/** What comes out of the file, and how to end it early. */
interface Unpacking {
  readonly chunks: AsyncIterator<Buffer>;
  stop(): void;
}

function refuse(filename: string, reason: string): BlockError {
  return new BlockError(`'${filename}' cannot be unpacked: ${reason}`, { errno: E.EIO });
}

function unpack(filename: string, packing: Packing): Unpacking {
  if (packing === 'gzip') {
    const output = createGunzip({ chunkSize: 256 * 1024 });
    pipeline(createReadStream(filename), output).catch(() => undefined);
    return { chunks: checked(output, filename, null), stop: () => output.destroy() };
  }
  const child = spawn(packing, ['-dc', '--', filename], { stdio: ['ignore', 'pipe', 'pipe'] });
  return { chunks: checked(child.stdout, filename, child), stop: () => child.kill('SIGKILL') };
}

/** The chunks of a stream; errors of it and of the program behind it end in one that names the file. */
async function* checked(
  output: Readable,
  filename: string,
  child: ChildProcess | null,
): AsyncGenerator<Buffer> {
  let told = '';
  child?.stderr?.on('data', (part: Buffer) => {
    if (told.length < 1000) told += part.toString();
  });
  const ended =
    child === null
      ? Promise.resolve(0)
      : new Promise<number>((resolve) => {
          child.on('error', () => resolve(127));
          child.on('close', (status) => resolve(status ?? 1));
        });
  try {
    for await (const chunk of output) yield chunk as Buffer;
  } catch (error) {
    throw refuse(filename, (error as Error).message);
  }
  const status = await ended;
  if (status === 127) throw refuse(filename, `the program '${child!.spawnfile}' is not there`);
  if (status !== 0) throw refuse(filename, told.trim() || `status ${status}`);
}

/** Bytes of the content. */
async function contentBytes(filename: string, packing: Packing): Promise<number> {
  if (packing === 'xz') {
    const { status, stdout } = spawnSync('xz', ['--robot', '--list', '--', filename], { encoding: 'utf8' });
    // A damaged file has totals, too.
    const totals = status !== 0 ? null : /^totals\t\d+\t\d+\t\d+\t(\d+)/m.exec(stdout ?? '');
    if (totals !== null) return Number(totals[1]);
  }
  const { chunks } = unpack(filename, packing);
  let bytes = 0;
  for (let next = await chunks.next(); next.done !== true; next = await chunks.next())
    bytes += next.value.length;
  return bytes;
}

interface Reading {
  readonly offset: number;
  readonly vec: IoVector;
  readonly done: (error: unknown) => void;
}

interface UnpackedState {
  readonly bytes: number;
  readonly unpacking: Unpacking;
  /** Of the content: how far it has been read. */
  position: number;
  /** Unpacked and not read yet. */
  rest: Buffer;
  readonly waiting: Map<number, Reading>;
  pumping: boolean;
}

async function open(_node: BlockNode<UnpackedState>, { options }: { readonly options: DriverOptions }) {
  const { filename, packing } = options as { readonly filename: string; readonly packing: Packing };
  const bytes = await contentBytes(filename, packing);
  return {
    bytes,
    unpacking: unpack(filename, packing),
    position: 0,
    rest: Buffer.alloc(0),
    waiting: new Map<number, Reading>(),
    pumping: false,
  };
}

/** Serves reads in the order of their places, as long as the next one is there. */
async function pump(state: UnpackedState): Promise<void> {
  if (state.pumping) return;
  state.pumping = true;
  for (
    let next = state.waiting.get(state.position);
    next !== undefined;
    next = state.waiting.get(state.position)
  ) {
    state.waiting.delete(next.offset);
    try {
      await fill(state, next.vec);
      next.done(null);
    } catch (error) {
      next.done(error);
    }
  }
  state.pumping = false;
}

async function fill(state: UnpackedState, vec: IoVector): Promise<void> {
  const start = state.position;
  state.position += vec.bytes;
  for (let at = 0; at < vec.bytes; ) {
    if (state.rest.length === 0) {
      const next = await state.unpacking.chunks.next();
      if (next.done === true) {
        // The last sector may be longer than the content; more than that is missing.
        if (start + at < state.bytes) throw ioError(E.EIO);
        fillVector(sliceVector(vec, at, vec.bytes - at), 0);
        return;
      }
      state.rest = next.value;
    }
    const length = Math.min(state.rest.length, vec.bytes - at);
    copyToVector(sliceVector(vec, at, length), state.rest.subarray(0, length));
    state.rest = state.rest.subarray(length);
    at += length;
  }
  // Checksums come at the end: what was read counts when the unpacking has ended well.
  if (state.position >= state.bytes && (await state.unpacking.chunks.next()).done !== true)
    throw ioError(E.EIO);
}

export const unpacked: BlockDriver<UnpackedState> = {
  name: 'unpacked',
  kind: 'protocol',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  costlyStatus: true,
  open,
  close: async ({ state }) => state.unpacking.stop(),
  preadv({ state }, _guard, offset, _bytes, vec) {
    if (offset < state.position || state.waiting.has(offset)) throw ioError(E.ESPIPE);
    return new Promise<void>((resolve, reject) => {
      const done = (error: unknown): void => (error === null ? resolve() : reject(error));
      state.waiting.set(offset, { offset, vec, done });
      void pump(state);
    });
  },
  getLength: async ({ state }) => state.bytes,
};

/** Opens the content of a compressed file. */
export async function openPacked(layer: BlockLayer, filename: string, packing: Packing): Promise<BlockNode> {
  await checkRaw(filename, packing, Object.values(layer.drivers));
  return openFromOptions(layer, { driver: 'unpacked', 'read-only': true, filename, packing });
}

/** Throws when the content is an image of a format, which cannot be read from front to back. */
async function checkRaw(
  filename: string,
  packing: Packing,
  formats: readonly { readonly name: string; probe?(start: Buffer): number }[],
): Promise<void> {
  const { chunks, stop } = unpack(filename, packing);
  let start = Buffer.alloc(0);
  for (
    let next = await chunks.next();
    next.done !== true && start.length < PROBE_BYTES;
    next = await chunks.next()
  )
    start = Buffer.concat([start, next.value]);
  stop();
  const padded = Buffer.concat([start.subarray(0, PROBE_BYTES), Buffer.alloc(PROBE_BYTES)]).subarray(
    0,
    PROBE_BYTES,
  );
  const format = formats.find((each) => (each.probe?.(padded) ?? 0) > 0);
  if (format === undefined) return;
  throw new BlockError(
    `The image in it is ${format.name}, and only raw images can be read compressed: unpack it first`,
    {
      errno: E.ENOTSUP,
    },
  );
}
