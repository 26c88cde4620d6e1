/**
 * zstd through the system's libzstd, for Node versions whose node:zlib has none (before 22.15).
 *
 * One-shot calls on libuv's thread pool, each with a context from a small pool; or within the turn, while such calls are
 * short. Here: frames in, frames out. Not here: what frames a cluster may hold (src/drivers/compress).
 */

import koffi from 'koffi';
import { addressOf } from './ffi.ts';
import { callTook, createCallPace, mayCallNow } from './libraries/call-pace.ts';

export interface ZstdLibrary {
  /** Compresses `input` into one frame at the default level. The frame's length, or null when `output` is too small. */
  compress(input: Buffer, output: Buffer): Promise<number | null>;
  /** Decompresses one whole frame into `output`. Bytes written, or null when malformed or larger than `output`. */
  decompress(frame: Buffer, output: Buffer): Promise<number | null>;
  /** As compress, within this turn; undefined: not now, such calls have been taking long. */
  readonly compressNow: CallNow;
  /** As decompress, within this turn. */
  readonly decompressNow: CallNow;
}

export type CallNow = (
  inputAddr: number,
  inputBytes: number,
  outputAddr: number,
  outputBytes: number,
) => number | null | undefined;

/** ZSTD_CLEVEL_DEFAULT (zstd.h). */
const LEVEL_DEFAULT = 3;

/** Calls given to the thread pool at once: koffi takes 256 of all kinds, and more than there are cores gain nothing. */
const MAX_RUNNING = 32;

/** Idle contexts kept per direction: as many as libuv has threads by default. */
const MAX_IDLE = 4;

type Callable = ReturnType<ReturnType<typeof koffi.load>['func']>;

// size_t results; errors are the negated code (ZSTD_isError), so anything in the upper half is an error.
function sizeOrNull(result: number | bigint): number | null {
  if (typeof result === 'number') return result;
  return BigInt(result) >= 1n << 63n ? null : Number(result);
}

type Run = (input: Buffer, output: Buffer) => Promise<number | null>;

/** Runs `call(context, output, input, ...more)` on the thread pool with an idle or new context. */
function runner(create: Callable, free: Callable, call: Callable, more: readonly number[]): Run {
  const idle: unknown[] = [];
  const waiting: (() => void)[] = [];
  let running = 0;

  const runOnPool: Run = (input, output) =>
    new Promise((resolve, reject) => {
      const context: unknown = idle.pop() ?? create();
      if (context === null) {
        resolve(null);
        return;
      }
      const args = [context, addressOf(output), output.length, addressOf(input), input.length, ...more];
      call.async(...args, (error: Error | null, result: number | bigint) => {
        if (idle.length < MAX_IDLE) idle.push(context);
        else free(context);
        // Naming the buffers keeps them alive until here: the call knows addresses only.
        if (error !== null || input.length + output.length === 0) reject(error);
        else resolve(sizeOrNull(result));
      });
    });

  return async (input, output) => {
    if (running === MAX_RUNNING) await new Promise<void>((resolve) => waiting.push(resolve));
    else running += 1;
    try {
      return await runOnPool(input, output);
    } finally {
      // The place goes straight to the next in line.
      const next = waiting.shift();
      if (next === undefined) running -= 1;
      else next();
    }
  };
}

/** Makes the call within the turn, with a context that is kept, as long as such calls are short. */
function nowRunner(create: Callable, call: Callable, more: readonly number[]): CallNow {
  const pace = createCallPace();
  let context: unknown = null;
  return (inputAddr, inputBytes, outputAddr, outputBytes) => {
    if (!mayCallNow(pace)) return undefined;
    context ??= create();
    if (context === null) return undefined;
    const startMs = performance.now();
    const result = call(context, outputAddr, outputBytes, inputAddr, inputBytes, ...more) as number | bigint;
    callTook(pace, performance.now() - startMs);
    return sizeOrNull(result);
  };
}

function load(): ZstdLibrary | null {
  let library: ReturnType<typeof koffi.load>;
  try {
    library = koffi.load('libzstd.so.1');
  } catch {
    return null;
  }
  const bufferArguments = ['void*', 'uintptr_t', 'size_t', 'uintptr_t', 'size_t'];
  const createCompressor = library.func('ZSTD_createCCtx', 'void*', []);
  const compress = library.func('ZSTD_compressCCtx', 'size_t', [...bufferArguments, 'int']);
  const createDecompressor = library.func('ZSTD_createDCtx', 'void*', []);
  const decompress = library.func('ZSTD_decompressDCtx', 'size_t', bufferArguments);
  return {
    compress: runner(createCompressor, library.func('ZSTD_freeCCtx', 'size_t', ['void*']), compress, [
      LEVEL_DEFAULT,
    ]),
    decompress: runner(
      createDecompressor,
      library.func('ZSTD_freeDCtx', 'size_t', ['void*']),
      decompress,
      [],
    ),
    compressNow: nowRunner(createCompressor, compress, [LEVEL_DEFAULT]),
    decompressNow: nowRunner(createDecompressor, decompress, []),
  };
}

let loaded: ZstdLibrary | null | undefined;

/** The system's libzstd, loaded on first use; null when there is none. */
export function zstdLibrary(): ZstdLibrary | null {
  if (loaded === undefined) loaded = load();
  return loaded;
}
