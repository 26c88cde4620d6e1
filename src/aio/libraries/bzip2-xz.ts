/**
 * bzip2 and xz through the system's libbz2 and liblzma, which every distribution's base system has: one-shot calls on
 * libuv's thread pool.
 *
 * Here: compressed bytes in, as many bytes out as are expected. Not here: where they come from.
 */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';

/** Decompresses `input` into `output`; bytes written, or null when it is malformed or longer than `output`. */
export type Decompress = (input: Buffer, output: Buffer) => Promise<number | null>;

type Library = ReturnType<typeof koffi.load>;

/** More memory than the largest preset of xz needs is not given to an image. */
const XZ_MEMORY_BYTES = 128 * 1024 * 1024;

function loadFirst(names: readonly string[]): Library | null {
  for (const name of names) {
    try {
      return koffi.load(name);
    } catch {
      // The next one.
    }
  }
  return null;
}

/** Runs a call on the thread pool; `kept` is what the call knows by address only. */
function run(
  call: ReturnType<Library['func']>,
  args: readonly (number | null)[],
  kept: readonly Buffer[],
): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error: Error | null, result: number) => {
      if (error !== null || kept.length === 0) reject(error);
      else resolve(result);
    });
  });
}

function bindBzip2(): Decompress | null {
  const library = loadFirst(['libbz2.so.1.0', 'libbz2.so.1']);
  if (library === null) return null;
  const call = library.func('BZ2_bzBuffToBuffDecompress', 'int', [
    ...['uintptr_t', 'uintptr_t', 'uintptr_t', 'uint32', 'int', 'int'],
  ]);
  return async (input, output) => {
    const length = Buffer.allocUnsafeSlow(8);
    length.writeUInt32LE(output.length, 0);
    const args = [addressOf(output), addressOf(length), addressOf(input), input.length, 0, 0];
    const status = await run(call, args, [length, input, output]);
    return status === 0 ? length.readUInt32LE(0) : null;
  };
}

function bindXz(): Decompress | null {
  const library = loadFirst(['liblzma.so.5']);
  if (library === null) return null;
  const call = library.func('lzma_stream_buffer_decode', 'int', [
    ...['uintptr_t', 'uint32', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'size_t'],
    ...['uintptr_t', 'uintptr_t', 'size_t'],
  ]);
  return async (input, output) => {
    const cells = Buffer.allocUnsafeSlow(24).fill(0);
    cells.writeBigUInt64LE(BigInt(XZ_MEMORY_BYTES), 0);
    const at = addressOf(cells);
    const args = [
      at,
      0,
      0,
      addressOf(input),
      at + 8,
      input.length,
      addressOf(output),
      at + 16,
      output.length,
    ];
    const status = await run(call, args, [cells, input, output]);
    return status === 0 ? Number(cells.readBigUInt64LE(16)) : null;
  };
}

let bzip2: Decompress | null | undefined;
let xz: Decompress | null | undefined;

/** Null: this host has no libbz2. */
export function bzip2Decompress(): Decompress | null {
  if (bzip2 === undefined) bzip2 = bindBzip2();
  return bzip2;
}

/** Null: this host has no liblzma. */
export function xzDecompress(): Decompress | null {
  if (xz === undefined) xz = bindXz();
  return xz;
}
