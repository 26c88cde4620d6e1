/**
 * Raw deflate data decompressed within the turn: by libdeflate where the host has it (half the time), by the zlib that node
 * has in itself, or the system's.
 *
 * Here: bytes to bytes in one call, for data that are known to be little. What is malformed is refused without a reason:
 * the caller goes another way, which finds out. Not here: what runs on the thread pool (node:zlib does that).
 */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';
import { type Callable, callAsync } from '../host/pooled-calls.ts';
import { type CallPace, callTook, createCallPace, mayCallNow } from './call-pace.ts';

/** struct z_stream (zlib.h) on 64-bit systems: offsets and size in bytes. */
const NEXT_IN = 0;
const AVAIL_IN = 8;
const NEXT_OUT = 24;
const AVAIL_OUT = 32;
const STREAM_BYTES = 112;

const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_BUF_ERROR = -5;
const Z_SYNC_FLUSH = 2;
/** Negative: raw deflate, without a header. What goes further back than the window is still found in the output. */
const RAW_WINDOW_BITS = -12;
const VERSION = '1.2.0';

/** Whether `inputBytes` at an address give `outputBytes` at the other one. */
type Inflate = (inputAddr: number, inputBytes: number, outputAddr: number, outputBytes: number) => boolean;

interface Inflater {
  readonly inflate: Inflate;
  readonly pace: CallPace;
}

type Library = ReturnType<typeof koffi.load>;

/** Where the functions may be: node's own have a prefix in most builds. */
const PLACES: readonly (readonly [string | null, string])[] = [
  [null, 'Cr_z_'],
  ['libz.so.1', ''],
];

function zlibOf(library: Library, prefix: string): Inflate | null {
  const init = library.func(`${prefix}inflateInit2_`, 'int', ['uintptr_t', 'int', 'str', 'int']);
  const inflate = library.func(`${prefix}inflate`, 'int', ['uintptr_t', 'int']);
  const reset = library.func(`${prefix}inflateReset`, 'int', ['uintptr_t']);
  const stream = Buffer.allocUnsafeSlow(STREAM_BYTES).fill(0);
  const address = addressOf(stream);
  if (init(address, RAW_WINDOW_BITS, VERSION, STREAM_BYTES) !== Z_OK) return null;
  const view = new DataView(stream.buffer, stream.byteOffset, STREAM_BYTES);
  return (inputAddr, inputBytes, outputAddr, outputBytes) => {
    if (reset(address) !== Z_OK) return false;
    setAddress(view, NEXT_IN, inputAddr);
    view.setUint32(AVAIL_IN, inputBytes, true);
    setAddress(view, NEXT_OUT, outputAddr);
    view.setUint32(AVAIL_OUT, outputBytes, true);
    const result = inflate(address, Z_SYNC_FLUSH) as number;
    const isGood = result === Z_STREAM_END || result === Z_OK || result === Z_BUF_ERROR;
    return isGood && view.getUint32(AVAIL_OUT, true) === 0;
  };
}

interface Libdeflate {
  makeDecompressor(): number;
  /** Without a place for the length it takes nothing but the exact one. What follows the data is not looked at. */
  readonly decompress: Callable;
}

/** Source of the facts: libdeflate.h of libdeflate 1.14 (Debian package libdeflate0). */
function bindLibdeflate(): Libdeflate | null {
  try {
    const library = koffi.load('libdeflate.so.0');
    const p = 'uintptr_t';
    const make = library.func('libdeflate_alloc_decompressor', p, []);
    return {
      makeDecompressor: () => Number(make()),
      decompress: library.func('libdeflate_deflate_decompress', 'int', [p, p, 'size_t', p, 'size_t', p]),
    };
  } catch {
    return null;
  }
}

let boundLibdeflate: Libdeflate | null | undefined;

function theLibdeflate(): Libdeflate | null {
  if (boundLibdeflate === undefined) boundLibdeflate = bindLibdeflate();
  return boundLibdeflate;
}

function libdeflate(): Inflate | null {
  const library = theLibdeflate();
  const decompressor = library?.makeDecompressor() ?? 0;
  if (library === null || decompressor === 0) return null;
  return (inputAddr, inputBytes, outputAddr, outputBytes) =>
    library.decompress(decompressor, inputAddr, inputBytes, outputAddr, outputBytes, 0) === 0;
}

function zlib(): Inflate | null {
  for (const [file, prefix] of PLACES) {
    try {
      const inflate = zlibOf(koffi.load(file), prefix);
      if (inflate !== null) return inflate;
    } catch {
      // The next place.
    }
  }
  return null;
}

function load(): Inflater | null {
  const [quick, usual] = [libdeflate(), zlib()];
  const pace = createCallPace();
  if (quick === null || usual === null) {
    const inflate = quick ?? usual;
    return inflate === null ? null : { inflate, pace };
  }
  // Data that go on behind the output, or lack their end, are zlib's business.
  return { inflate: (...spans) => quick(...spans) || usual(...spans), pace };
}

let loaded: Inflater | null | undefined;

function setAddress(view: DataView, at: number, address: number): void {
  view.setUint32(at, address >>> 0, true);
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
}

/**
 * Decompresses to exactly `outputBytes`; what the data hold beyond that is cut. False: not within this turn, since such
 * calls have been taking long, or the data are malformed or too short; the output's content is then undefined.
 */
export function inflateNow(
  inputAddr: number,
  inputBytes: number,
  outputAddr: number,
  outputBytes: number,
): boolean {
  if (loaded === undefined) loaded = load();
  if (loaded === null) return false;
  const { inflate, pace } = loaded;
  if (!mayCallNow(pace)) return false;
  const startMs = performance.now();
  const isGood = inflate(inputAddr, inputBytes, outputAddr, outputBytes);
  callTook(pace, performance.now() - startMs);
  return isGood;
}

/** Decompressors that no thread is using: each is for one call at a time. */
const idle: number[] = [];

/**
 * As inflateNow, on the thread pool. False also where there is no library for it: the caller goes another way. Both
 * buffers have memory of their own (Buffer.allocUnsafeSlow).
 */
export async function inflatePooled(input: Buffer, output: Buffer): Promise<boolean> {
  const library = theLibdeflate();
  if (library === null) return false;
  const decompressor = idle.pop() ?? library.makeDecompressor();
  if (decompressor === 0) return false;
  const [from, to] = [addressOf(input), addressOf(output)];
  const result = await callAsync(
    ...([library.decompress, decompressor, from, input.length, to, output.length, 0] as const),
  );
  // They live until here.
  void input.length;
  void output.length;
  idle.push(decompressor);
  return result === 0;
}
