/**
 * Raw deflate data decompressed within the turn, by the zlib that node has in itself, or the system's.
 *
 * Here: bytes to bytes in one call, for data that are known to be little. What is malformed is refused without a reason:
 * the caller goes another way, which finds out. Not here: what runs on the thread pool (node:zlib does that).
 */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';
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

interface Inflater {
  readonly stream: Buffer;
  readonly view: DataView;
  readonly address: number;
  readonly inflate: (stream: number, flush: number) => number;
  readonly reset: (stream: number) => number;
  readonly pace: CallPace;
}

type Library = ReturnType<typeof koffi.load>;

/** Where the functions may be: node's own have a prefix in most builds. */
const PLACES: readonly (readonly [string | null, string])[] = [
  [null, 'Cr_z_'],
  ['libz.so.1', ''],
];

function bind(library: Library, prefix: string): Inflater | null {
  const init = library.func(`${prefix}inflateInit2_`, 'int', ['uintptr_t', 'int', 'str', 'int']);
  const stream = Buffer.allocUnsafeSlow(STREAM_BYTES).fill(0);
  const address = addressOf(stream);
  if (init(address, RAW_WINDOW_BITS, VERSION, STREAM_BYTES) !== Z_OK) return null;
  return {
    stream,
    view: new DataView(stream.buffer, stream.byteOffset, STREAM_BYTES),
    address,
    inflate: library.func(`${prefix}inflate`, 'int', ['uintptr_t', 'int']) as Inflater['inflate'],
    reset: library.func(`${prefix}inflateReset`, 'int', ['uintptr_t']) as Inflater['reset'],
    pace: createCallPace(),
  };
}

function load(): Inflater | null {
  for (const [file, prefix] of PLACES) {
    try {
      const inflater = bind(koffi.load(file), prefix);
      if (inflater !== null) return inflater;
    } catch {
      // The next place.
    }
  }
  return null;
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
  const { view, address, inflate, reset, pace } = loaded;
  if (!mayCallNow(pace)) return false;
  const startMs = performance.now();
  if (reset(address) !== Z_OK) return false;
  setAddress(view, NEXT_IN, inputAddr);
  view.setUint32(AVAIL_IN, inputBytes, true);
  setAddress(view, NEXT_OUT, outputAddr);
  view.setUint32(AVAIL_OUT, outputBytes, true);
  const result = inflate(address, Z_SYNC_FLUSH);
  callTook(pace, performance.now() - startMs);
  const isGood = result === Z_STREAM_END || result === Z_OK || result === Z_BUF_ERROR;
  return isGood && view.getUint32(AVAIL_OUT, true) === 0;
}
