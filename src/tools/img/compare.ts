/** `compare`: whether two images have the same content. */

import { createTurns } from '../../aio/host/turns.ts';
import { allocateIoMemory, type IoMemory, isZero, vectorOf } from '../../aio/memory.ts';
import { Status } from '../../block/contract/request.ts';
import type { ChainStatus } from '../../block/io/status-chain.ts';
import { strerror } from '../../errors/errno.ts';
import { errnoOf } from '../../errors/error.ts';
import { openNamedImage, type ToolImage } from '../common/environment.ts';
import { createProgress, type Progress, progressMode } from '../common/progress.ts';
import {
  type CommandContext,
  checkFormatGiven,
  readOptions,
  sourceCache,
  UsageError,
} from './common/command.ts';
import { COMPARE } from './tables/making.ts';

/** Exit statuses beside 0. */
const STATUS_DIFFERENT = 1;
const STATUS_ERROR = 2;
const STATUS_NO_STATUS = 3;
const STATUS_NO_DATA = 4;

/** Longest piece that is read at once. */
const PIECE_BYTES = 2 * 1024 * 1024;
/** What is in the page cache is read in pieces of which one of each side stays in the processor's cache. */
const IN_TURN_BYTES = 256 * 1024;
const SECTOR_BYTES = 512;

/** The comparison is over. `message` is a result, printed unless -q, or an error. */
class Verdict {
  readonly status: number;
  readonly message: string;

  constructor(status: number, message: string) {
    this.status = status;
    this.message = message;
  }
}

export async function compare(context: CommandContext, words: readonly string[]): Promise<number> {
  const formats: [string | null, string | null] = [null, null];
  let cache = 'writeback';
  let quiet = false;
  let strict = false;
  let progressValue: string | null = null;
  let imageOpts = false;
  let forceShare = false;
  let operands: readonly string[];
  try {
    operands = await readOptions(context, COMPARE, words, (name, value) => {
      if (name === 'format1') formats[0] = value;
      else if (name === 'format2') formats[1] = value;
      else if (name === 'cache') cache = value;
      else if (name === 'progress') progressValue = value;
      else if (name === 'quiet') quiet = true;
      else if (name === 'strict') strict = true;
      else if (name === 'imageOpts') imageOpts = true;
      else forceShare = true;
    });
    if (operands.length !== 2) throw new UsageError('Expecting two image file names');
  } catch (error) {
    if (error instanceof UsageError) throw error;
    return fail(context, error);
  }
  const progress = createProgress(context.output, progressMode(progressValue, quiet), 2);
  const say = (text: string): void => {
    if (!quiet) context.output.print(`${text}\n`);
  };
  try {
    checkFormatGiven(imageOpts, formats[0]);
    const env = context.environment();
    const mode = sourceCache(cache);
    const open = (index: 0 | 1): Promise<ToolImage> =>
      openNamedImage(env, {
        name: operands[index]!,
        format: formats[index],
        imageOpts,
        forceShare,
        cache: mode,
      });
    const images = [await open(0), await open(1)] as const;
    await new Comparison(images, { strict, progress, say }).run();
    say('Images are identical.');
    return 0;
  } catch (error) {
    if (!(error instanceof Verdict)) return fail(context, error);
    if (error.status === STATUS_DIFFERENT) say(error.message);
    else context.output.error(error.message);
    return error.status;
  } finally {
    progress.end();
  }
}

function fail({ output }: CommandContext, error: unknown): number {
  if (typeof error === 'object' && error !== null && 'status' in error) throw error;
  output.error(error);
  return STATUS_ERROR;
}

interface Side {
  readonly image: ToolImage;
  readonly bytes: number;
  readonly memory: IoMemory;
  /** The extent that was looked up last ends at `end`. */
  known: { readonly end: number; readonly flags: number } | null;
}

interface Settings {
  readonly strict: boolean;
  readonly progress: Progress;
  readonly say: (text: string) => void;
}

class Comparison {
  readonly #sides: readonly [Side, Side];
  readonly #settings: Settings;

  constructor(images: readonly [ToolImage, ToolImage], settings: Settings) {
    const side = (image: ToolImage): Side => ({
      image,
      bytes: image.node.totalBytes,
      memory: allocateIoMemory(PIECE_BYTES),
      known: null,
    });
    this.#sides = [side(images[0]), side(images[1])];
    this.#settings = settings;
  }

  async run(): Promise<void> {
    const [one, two] = this.#sides;
    const { strict, progress, say } = this.#settings;
    const whole = Math.max(one.bytes, two.bytes);
    progress.begin('compare', whole);
    progress.add(0);
    if (strict && one.bytes !== two.bytes)
      throw new Verdict(STATUS_DIFFERENT, 'Strict mode: Image size mismatch!');
    const common = Math.min(one.bytes, two.bytes);
    const turns = createTurns();
    for (let at = 0; at < common; ) {
      const length = await this.#compareAt(at);
      at += length;
      await turns.next();
      progress.add((length / whole) * 100);
    }
    if (one.bytes === two.bytes) return;
    say('Warning: Image size mismatch!');
    const longer = one.bytes > two.bytes ? one : two;
    for (let at = common; at < longer.bytes; ) {
      const status = await statusAt(longer, at);
      let { bytes } = status;
      if (holdsData(status) && (status.flags & Status.zero) === 0) {
        bytes = Math.min(bytes, PIECE_BYTES);
        await this.#checkZeroes(longer, at, bytes);
      }
      at += bytes;
      progress.add((bytes / whole) * 100);
    }
  }

  /** Compares the extent at `offset`; returns its length. */
  async #compareAt(offset: number): Promise<number> {
    const [one, two] = this.#sides;
    const { strict } = this.#settings;
    const first = await knownAt(one, offset);
    const second = await knownAt(two, offset);
    let length = Math.min(first.bytes, second.bytes);
    // Whether an extent has a place in a file, and whether it reaches the end of its image, counts too, as in the original.
    const relevant = ~(Status.recurse | Status.compressed);
    if (strict && ((first.flags ^ second.flags) & relevant) !== 0)
      throw new Verdict(STATUS_DIFFERENT, `Strict mode: Offset ${offset} block status mismatch!`);
    if ((first.flags & second.flags & Status.zero) !== 0) return length;
    if (holdsData(first) && holdsData(second)) {
      length = Math.min(length, PIECE_BYTES);
      const done = compareInTurn(one, two, offset, length);
      if (done > 0) return done;
      await Promise.all([read(one, offset, length), read(two, offset, length)]);
      checkSame(one, two, offset, length);
    } else if (holdsData(first) || holdsData(second)) {
      length = Math.min(length, PIECE_BYTES);
      await this.#checkZeroes(holdsData(first) ? one : two, offset, length);
    }
    return length;
  }

  async #checkZeroes(side: Side, offset: number, bytes: number): Promise<void> {
    await read(side, offset, bytes);
    for (let at = 0; at < bytes; at += SECTOR_BYTES) {
      const end = Math.min(at + SECTOR_BYTES, bytes);
      if (!isZero(side.memory.buf.subarray(at, end))) throw mismatch(offset + at);
    }
  }
}

/** Compares what is had without waiting; returns how much that was. */
function compareInTurn(one: Side, two: Side, offset: number, bytes: number): number {
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, IN_TURN_BYTES);
    if (!tryRead(one, offset + at, length) || !tryRead(two, offset + at, length)) return at;
    checkSame(one, two, offset + at, length);
    at += length;
  }
  return bytes;
}

function tryRead({ image, memory }: Side, offset: number, bytes: number): boolean {
  return image.backend.tryPreadv(offset, bytes, vectorOf(memory, 0, bytes));
}

/** `offset` is where in the images the first `length` bytes of the sides' memory were. */
function checkSame(one: Side, two: Side, offset: number, length: number): void {
  const different = firstDifference(one.memory.buf, two.memory.buf, length);
  if (different !== null) throw mismatch(offset + different);
}

function mismatch(offset: number): Verdict {
  return new Verdict(STATUS_DIFFERENT, `Content mismatch at offset ${offset}!`);
}

function holdsData({ flags }: { readonly flags: number }): boolean {
  return (flags & Status.allocated) !== 0;
}

/** Start of the first sector that differs; null: none does. */
function firstDifference(one: Buffer, two: Buffer, length: number): number | null {
  if (one.compare(two, 0, length, 0, length) === 0) return null;
  let low = 0;
  let size = length;
  while (size > SECTOR_BYTES) {
    const half = Math.ceil(size / 2 / SECTOR_BYTES) * SECTOR_BYTES;
    if (one.compare(two, low, low + half, low, low + half) === 0) {
      low += half;
      size -= half;
    } else {
      size = half;
    }
  }
  return low;
}

/** The extent at `offset`, asked for anew when the last one is over. */
async function knownAt(
  side: Side,
  offset: number,
): Promise<{ readonly flags: number; readonly bytes: number }> {
  const { known } = side;
  if (known !== null && offset < known.end) return { flags: known.flags, bytes: known.end - offset };
  const { flags, bytes } = await statusAt(side, offset);
  side.known = { end: offset + bytes, flags };
  return { flags, bytes };
}

async function statusAt({ image, bytes }: Side, offset: number): Promise<ChainStatus> {
  try {
    return await image.backend.chainStatus(offset, bytes - offset, null);
  } catch {
    throw new Verdict(STATUS_NO_STATUS, `Sector allocation test failed for ${image.name}`);
  }
}

async function read({ image, memory }: Side, offset: number, bytes: number): Promise<void> {
  try {
    await image.backend.preadv(offset, bytes, vectorOf(memory, 0, bytes), 0);
  } catch (error) {
    const reason = strerror(errnoOf(error));
    throw new Verdict(STATUS_NO_DATA, `Error while reading offset ${offset} of ${image.name}: ${reason}`);
  }
}
