/** `bench`: runs requests of one kind and size on an image, one behind another in it, and tells how long it took. */

import { allocateIoMemory, type IoVector, vectorOf } from '../../aio/memory.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { protocolOptions } from '../../block/open/image-name.ts';
import { strerror } from '../../errors/errno.ts';
import { BlockError, errnoOf } from '../../errors/error.ts';
import { cacheMode, openNamedImage, type ToolImage } from '../common/environment.ts';
import {
  type CommandContext,
  checkFormatGiven,
  readOptions,
  readSize,
  UsageError,
} from './common/command.ts';
import { BENCH } from './tables/making.ts';

const MAX_INT = 2 ** 31 - 1;

interface Bench {
  readonly image: ToolImage;
  readonly count: number;
  readonly depth: number;
  readonly bytes: number;
  readonly step: number;
  readonly write: boolean;
  /** Requests between two flushes; 0: none. */
  readonly flushInterval: number;
  /** Requests are waited for before a flush. */
  readonly drain: boolean;
  offset: number;
}

/** A whole number from 0 (or `min`) to 2^31 - 1. */
function whole(text: string, message: string, min = 0, max = MAX_INT): number {
  const value = /^\s*\+?\d+$/.test(text)
    ? Number(text)
    : /^0x[0-9a-f]+$/i.test(text)
      ? Number(text)
      : Number.NaN;
  if (!(value >= min && value <= max)) throw new BlockError(message);
  return value;
}

export async function bench(context: CommandContext, words: readonly string[]): Promise<number> {
  const { output } = context;
  let count = 75_000;
  let depth = 64;
  let bytes = 4096;
  let offset = 0;
  let step = 0;
  let pattern = 0;
  let flushInterval = 0;
  let cacheName = 'writeback';
  let aio: string | null = null;
  let format: string | null = null;
  const flags = new Set<string>();
  const operands = await readOptions(context, BENCH, words, (name, value) => {
    if (name === 'count') count = whole(value, 'Invalid request count specified');
    // A depth of 0 would never get anything done.
    else if (name === 'depth') depth = whole(value, 'Invalid queue depth specified', 1);
    else if (name === 'format') format = value;
    else if (name === 'flushInterval') flushInterval = whole(value, 'Invalid flush interval specified');
    else if (name === 'pattern') pattern = whole(value, 'Invalid pattern byte specified', 0, 255);
    else if (name === 'offset') offset = readSize(output, 'offset', value);
    else if (name === 'size') bytes = bufferSize(context, 'buffer size', value);
    else if (name === 'step') step = bufferSize(context, 'step_size', value);
    else if (name === 'cache') cacheName = value;
    else if (name === 'native') aio = 'native';
    else if (name === 'aio') {
      if (!['native', 'threads', 'io_uring'].includes(value))
        throw new BlockError(`Invalid aio option: ${value}`);
      // As in the original, what was chosen before stays unless more is asked for.
      if (aio === null || value === 'native' || aio === 'threads') aio = value;
    } else flags.add(name);
  });
  const cache = cacheMode(cacheName);
  if (cache === null) throw new BlockError('Invalid cache mode');
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  checkFormatGiven(flags.has('imageOpts'), format);
  const write = flags.has('write');
  if (!write && flushInterval !== 0)
    throw new BlockError('--flush-interval is only available in write tests');
  if (flushInterval !== 0 && flushInterval < depth)
    throw new BlockError("Flush interval can't be smaller than depth");

  const image = await openNamedImage(context.environment(), {
    name,
    format,
    imageOpts: flags.has('imageOpts'),
    forceShare: flags.has('forceShare'),
    cache,
    write,
    ...withAio(context, name, format, flags.has('imageOpts'), aio),
  });
  const run: Bench = {
    image,
    count,
    depth,
    bytes,
    step: step || bytes,
    write,
    flushInterval,
    drain: !flags.has('noDrain'),
    offset,
  };
  output.print(
    `Sending ${count} ${write ? 'write' : 'read'} requests, ${bytes} bytes each, ${depth} in parallel ` +
      `(starting at offset ${offset}, step size ${run.step})\n`,
  );
  if (flushInterval !== 0)
    output.print(
      `Sending ${run.drain ? '' : ''}flush every ${flushInterval}${run.drain ? '' : ''} requests\n`,
    );
  const startMs = performance.now();
  await runBench(run, pattern);
  output.print(`Run completed in ${((performance.now() - startMs) / 1000).toFixed(3)} seconds.\n`);
  await image.close();
  return 0;
}

/** The file with that mode of asynchronous I/O; other protocols have none. */
function withAio(
  { environment }: CommandContext,
  name: string,
  format: string | null,
  imageOpts: boolean,
  aio: string | null,
): { readonly definition?: DriverOptions } {
  if (aio === null || imageOpts) return {};
  const file = protocolOptions(environment().layer, name);
  if (file.driver !== 'file' && file.driver !== 'host_device') return {};
  return { definition: { ...(format !== null && { driver: format }), file: { ...file, aio } } };
}

function bufferSize({ output }: CommandContext, what: string, text: string): number {
  return readSize(output, what, text, BigInt(MAX_INT));
}

async function runBench(bench: Bench, pattern: number): Promise<void> {
  const { image, depth, count, bytes, flushInterval, drain } = bench;
  const memories = Array.from({ length: Math.min(depth, Math.max(count, 1)) }, () => {
    const memory = allocateIoMemory(Math.max(bytes, 1));
    memory.buf.fill(pattern);
    return vectorOf(memory, 0, bytes);
  });
  let started = 0;
  let running = 0;
  let failure: { readonly error: unknown } | null = null;
  let wake: () => void = () => undefined;
  /** While a flush waits for what is under way, nothing new begins. */
  let flushing: Promise<void> | null = null;
  const flush = async (): Promise<void> => {
    while (drain && running > 0) await new Promise<void>((resolve) => (wake = resolve));
    await image.backend.flush();
  };
  const worker = async (vector: IoVector): Promise<void> => {
    while (started < count && failure === null) {
      if (flushing !== null) {
        await flushing;
        continue;
      }
      const number = ++started;
      running++;
      try {
        await request(bench, vector);
      } catch (error) {
        failure ??= { error };
      }
      running--;
      wake();
      if (flushInterval === 0 || number % flushInterval !== 0) continue;
      const own: Promise<void> = flush().catch((error: unknown) => {
        failure ??= { error };
      });
      if (drain) flushing = own;
      await own;
      if (flushing === own) flushing = null;
    }
  };
  await Promise.all(memories.map(worker));
  if (failure === null) return;
  throw new BlockError(
    `Failed request: ${strerror(errnoOf((failure as { readonly error: unknown }).error))}`,
  );
}

/** The next request; the one after it is a step further, beyond the end at the start again. */
function request(bench: Bench, vector: IoVector): Promise<void> | undefined {
  const { image, bytes, write, step } = bench;
  const { backend, node } = image;
  const at = bench.offset;
  bench.offset += step;
  if (bench.offset >= node.totalBytes && node.totalBytes > 0) bench.offset %= node.totalBytes;
  if (write) {
    if (image.writeFlags === 0 && backend.tryPwritev(at, bytes, vector)) return undefined;
    return backend.pwritev(at, bytes, vector, image.writeFlags);
  }
  return backend.tryPreadv(at, bytes, vector) ? undefined : backend.preadv(at, bytes, vector, 0);
}
