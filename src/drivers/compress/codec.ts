/**
 * Compression of clusters: raw deflate and zstd, as the qcow2 specification names them ("Compressed clusters").
 *
 * What is quickly done is done within the turn; the rest runs on libuv's thread pool, so that clusters are compressed
 * side by side. Here: bytes to bytes. Not here: where compressed clusters lie in an image and how their length is stored.
 */

import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { inflateNow, inflatePooled } from '../../aio/libraries/inflate.ts';
import { zstdLibrary } from '../../aio/zstd.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import { findZstdFrame } from './zstd-frame.ts';

export type CompressionType = 'zlib' | 'zstd';

/** Readers are promised that a window of 4 KiB is enough (qcow2 specification, "Compressed clusters"). */
const WINDOW_BITS = 12;

/** A cluster holds one frame; more are legal, but an image with this many wants to waste time. */
const MAX_FRAMES = 1024;

/** With room for one more byte than expected zlib ends in one call instead of coming back for an empty rest. */
const ROOM_BYTES = 64;

// Most runs compress nothing, and node:zlib is loaded with its first use (scripts/bundle.mjs).
const deflateRaw = (input: Buffer, options: zlib.ZlibOptions): Promise<Buffer> =>
  promisify<Buffer, zlib.ZlibOptions, Buffer>(zlib.deflateRaw)(input, options);
const inflateRaw = (input: Buffer, options: zlib.ZlibOptions): Promise<Buffer> =>
  promisify<Buffer, zlib.ZlibOptions, Buffer>(zlib.inflateRaw)(input, options);

type ZstdCallback = (error: Error | null, result: Buffer) => void;

/** What node:zlib offers from Node 22.15 on; the types are those of an older Node. */
interface NodeZstd {
  zstdCompress?(input: Buffer, options: zlib.ZlibOptions, callback: ZstdCallback): void;
  zstdDecompress?(input: Buffer, options: zlib.ZlibOptions, callback: ZstdCallback): void;
}

interface ZstdCodec {
  compress(input: Buffer): Promise<Buffer | null>;
  /** One frame of at most `maxBytes` of content; null when malformed or larger. */
  decompress(frame: Buffer, maxBytes: number): Promise<Buffer | null>;
}

function nodeZstd(): ZstdCodec | null {
  const { zstdCompress, zstdDecompress } = zlib as NodeZstd;
  if (zstdCompress === undefined || zstdDecompress === undefined) return null;
  const compress = promisify(zstdCompress);
  const decompress = promisify(zstdDecompress);
  return {
    compress: async (input) => {
      const output = await compress(input, { chunkSize: input.length + ROOM_BYTES });
      return output.length < input.length ? output : null;
    },
    decompress: async (frame, maxBytes) => {
      try {
        return await decompress(frame, { chunkSize: maxBytes + ROOM_BYTES, maxOutputLength: maxBytes });
      } catch {
        return null;
      }
    },
  };
}

function systemZstd(): ZstdCodec | null {
  const library = zstdLibrary();
  if (library === null) return null;
  return {
    compress: async (input) => {
      const output = Buffer.allocUnsafeSlow(input.length - 1);
      const bytes = await library.compress(input, output);
      return bytes === null ? null : output.subarray(0, bytes);
    },
    decompress: async (frame, maxBytes) => {
      const output = Buffer.allocUnsafeSlow(maxBytes);
      const bytes = await library.decompress(frame, output);
      return bytes === null ? null : output.subarray(0, bytes);
    },
  };
}

// The library is loaded when an image first asks for it.
function findZstd(): ZstdCodec | null {
  return nodeZstd() ?? systemZstd();
}

/** Whether this host can compress and decompress with zstd. */
export function zstdAvailable(): boolean {
  return findZstd() !== null;
}

function requireZstd(): ZstdCodec {
  const zstd = findZstd();
  if (zstd === null) {
    throw new BlockError('zstd compression needs libzstd.so.1 or Node.js 22.15 or later', {
      errno: E.ENOTSUP,
    });
  }
  return zstd;
}

/** Compresses `input` (one cluster, not empty); null when that does not make it smaller. */
export async function compressCluster(type: CompressionType, input: Buffer): Promise<Buffer | null> {
  if (type === 'zstd') return requireZstd().compress(input);
  const output = await deflateRaw(input, {
    windowBits: WINDOW_BITS,
    memLevel: 9,
    chunkSize: input.length + ROOM_BYTES,
  });
  return output.length < input.length ? output : null;
}

/**
 * Decompresses a cluster to exactly `outputBytes` bytes. `input` may be followed by other data (the rest of its last
 * sector). Errors: EIO when the data is malformed or too short. Memory: about `outputBytes`, whatever the input says.
 */
export function decompressCluster(
  type: CompressionType,
  input: Buffer,
  outputBytes: number,
): Promise<Buffer> {
  return type === 'zstd' ? decompressZstd(input, outputBytes) : decompressZlib(input, outputBytes);
}

/** Larger clusters are left to the thread pool: one alone would hold up the loop. */
const MAX_NOW_BYTES = 256 * 1024;

/** `length` bytes at `address`. */
export interface Span {
  readonly address: number;
  readonly length: number;
}

/**
 * Compresses a cluster within the turn: bytes written to `output`, which is to be smaller than `input`; null when that
 * does not make it smaller. Undefined: not within the turn (compressCluster).
 */
export function compressNow(type: CompressionType, input: Span, output: Span): number | null | undefined {
  // With deflate it always takes long enough for the thread pool.
  if (type === 'zlib' || input.length > MAX_NOW_BYTES) return undefined;
  return zstdLibrary()?.compressNow(input.address, input.length, output.address, output.length);
}

/**
 * As decompressCluster, within the turn. `packed` is all of `input`, and `output` has the length of a cluster. False:
 * that takes long, or something is wrong with the data: decompressCluster finds out.
 */
export function decompressNow(type: CompressionType, packed: Buffer, input: Span, output: Span): boolean {
  if (output.length > MAX_NOW_BYTES) return false;
  if (type === 'zlib') return inflateNow(input.address, input.length, output.address, output.length);
  const library = zstdLibrary();
  const frame = findZstdFrame(packed, 0);
  if (library === null || frame === null || frame.skippable) return false;
  return library.decompressNow(input.address, frame.end, output.address, output.length) === output.length;
}

// As with the original, deflate data that goes on after the cluster is full is cut, but zstd data is an error.
async function decompressZlib(input: Buffer, outputBytes: number): Promise<Buffer> {
  const whole = Buffer.allocUnsafeSlow(outputBytes);
  if (await inflatePooled(input, whole)) return whole;
  const options: zlib.ZlibOptions = {
    windowBits: WINDOW_BITS,
    chunkSize: outputBytes + ROOM_BYTES,
    maxOutputLength: outputBytes,
    // The last byte of the stream may be missing as long as all content is there.
    finishFlush: zlib.constants.Z_SYNC_FLUSH,
  };
  let output: Buffer;
  try {
    output = await inflateRaw(input, options);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_BUFFER_TOO_LARGE') throw ioError(E.EIO, error);
    output = await inflateStart(input, outputBytes);
  }
  if (output.length !== outputBytes) throw ioError(E.EIO);
  return output;
}

/** The first `bytes` of what `input` decompresses to. */
function inflateStart(input: Buffer, bytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const stream = zlib.createInflateRaw({ windowBits: WINDOW_BITS, chunkSize: bytes });
    stream.once('data', (chunk: Buffer) => {
      resolve(chunk);
      stream.destroy();
    });
    stream.once('error', (error) => reject(ioError(E.EIO, error)));
    stream.end(input);
  });
}

async function decompressZstd(input: Buffer, outputBytes: number): Promise<Buffer> {
  const codec = requireZstd();
  const parts: Buffer[] = [];
  let missing = outputBytes;
  let at = 0;
  for (let count = 0; missing > 0; count++) {
    const frame = findZstdFrame(input, at);
    if (frame === null || count === MAX_FRAMES) throw ioError(E.EIO);
    at = frame.end;
    if (frame.skippable) continue;
    const content = await codec.decompress(input.subarray(frame.start, frame.end), missing);
    if (content === null) throw ioError(E.EIO);
    missing -= content.length;
    parts.push(content);
  }
  const [only] = parts;
  return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts, outputBytes);
}
