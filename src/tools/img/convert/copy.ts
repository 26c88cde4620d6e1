/**
 * The copying of `convert`: from one or several images, one behind the other, into a target.
 *
 * The sources' block status decides what is done with each extent: data is read and written, zeroes are written as
 * zeroes unless the target is known to have them already, and what the target's backing image shows anyway is left
 * out. In data, blocks of zeroes are looked for as well. Several extents are moved at once; their writes start in
 * order, unless the user allows any order, so that the target's data lies in the order of the guest's. Moving the data
 * is the mover's (block/copy/mover.ts).
 */

import { createTurns } from '../../../aio/host/turns.ts';
import { allocateIoMemory, type IoMemory, isZero, vectorOf } from '../../../aio/memory.ts';
import { Status } from '../../../block/contract/request.ts';
import { holdOff, worked } from '../../../block/copy/hold-off.ts';
import {
  asksKernel,
  type CopyFailure,
  createMover,
  IN_TURN_BYTES,
  type Mover,
  moveExtent,
  moveInTurn,
  requestBytes,
  type WriteOrder,
  writeBuffer,
  type ZeroFinder,
} from '../../../block/copy/mover.ts';
import { skipFilters } from '../../../block/graph/chain.ts';
import { backingOf } from '../../../block/io/status-chain.ts';
import { CoMutex } from '../../../coroutine/co-mutex.ts';
import { CoQueue } from '../../../coroutine/co-queue.ts';
import { strerror } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import type { ToolImage } from '../../common/environment.ts';
import type { ToolOutput } from '../../common/output.ts';
import type { Progress } from '../../common/progress.ts';
import { createWaiting } from '../common/moves.ts';
import { createPace, type Pace } from '../common/pace.ts';
import { KnownRuns } from './known-runs.ts';
import { firstRun, mayCutAt, type ZeroRules } from './zero-runs.ts';

/** Longest piece of data that is read and written at once. */
export const PIECE_BYTES = 2 * 1024 * 1024;
const SECTOR_BYTES = 512;

export interface Source {
  readonly image: ToolImage;
  /** Where its first byte goes in the target. */
  readonly start: number;
  readonly bytes: number;
  /** Extents end at multiples of this where they can. */
  readonly alignmentBytes: number;
}

export interface CopySettings {
  readonly sources: readonly Source[];
  readonly totalBytes: number;
  readonly target: ToolImage;
  /** The target reads as zeroes where nothing is written. */
  readonly targetIsZero: boolean;
  /** Length of the target's backing image; null: it has none that matters. */
  readonly targetBackingBytes: number | null;
  /** Null: nothing is looked for, zeroes are written as data. */
  readonly zeroes: ZeroRules | null;
  /** The kernel copies where it can; blocks of zeroes in data then stay data. */
  readonly offload: boolean;
  /** Bytes of a compressed unit; null: nothing is compressed. */
  readonly compressBytes: number | null;
  readonly coroutines: number;
  readonly inOrder: boolean;
  /** Go on after read errors, with zeroes. */
  readonly salvage: boolean;
  /** Bytes a second; 0: no limit. */
  readonly rate: number;
  readonly output: ToolOutput;
  readonly progress: Progress;
}

type Kind = 'data' | 'zero' | 'backing';

interface Extent {
  readonly offset: number;
  readonly bytes: number;
  readonly kind: Kind;
}

interface Piece extends Extent {
  /** The turn comes when the writes of everything before this piece have started, and but one are done. */
  readonly order: WriteOrder;
  readonly done: () => void;
}

const AT_ONCE: WriteOrder = { turn: Promise.resolve(), begun: () => undefined };

export class Copy {
  readonly #settings: CopySettings;
  readonly #movers: ReadonlyMap<Source, Mover>;
  /** The status that holds up to `#statusEnd`, and whether it could be told. */
  #kind: Kind = 'data';
  #isTold = true;
  #statusEnd = 0;
  readonly #known: KnownRuns<Kind>;
  readonly #movesInTurn: boolean;
  #position = 0;
  #dataBytes = 0;
  #dataDone = 0;
  readonly #next = new CoMutex();
  /** Of the pieces that have been given out: the last has started, has been written; the one before has been written. */
  #lastStarted: Promise<void> = Promise.resolve();
  #lastDone: Promise<void> = Promise.resolve();
  #doneBeforeLast: Promise<void> = Promise.resolve();
  #failure: { readonly error: unknown } | null = null;
  readonly #pace: Pace;
  /** Pieces that have been given out and are not done. */
  #running = 0;
  readonly #idle = new CoQueue();
  /** Pieces to be given out before moving within a turn is tried again. */
  readonly #waiting = createWaiting();

  constructor(settings: CopySettings) {
    this.#settings = settings;
    this.#pace = createPace(settings.rate);
    // Progress is told extent by extent.
    this.#known = new KnownRuns(!settings.progress.isShown);
    const { rate, compressBytes, offload, zeroes } = settings;
    this.#movesInTurn = rate === 0 && compressBytes === null && !offload && mayCutAt(IN_TURN_BYTES, zeroes);
    this.#movers = new Map(settings.sources.map((source) => [source, moverFor(source, settings)]));
  }

  async run(): Promise<void> {
    const { totalBytes, compressBytes, target, coroutines } = this.#settings;
    await this.#countData();
    this.#settings.progress.begin('copy', this.#dataBytes);
    await Promise.all(Array.from({ length: coroutines }, () => this.#worker()));
    if (this.#failure !== null) throw (this.#failure as { readonly error: unknown }).error;
    if (compressBytes !== null) await target.backend.pwritevCompressed(0, 0, { segments: [], bytes: 0 });
    if (totalBytes > 0) this.#settings.progress.set(100);
  }

  /** What progress is measured by. What could not be told is asked for again when it is copied. */
  async #countData(): Promise<void> {
    const turns = createTurns();
    for (let at = 0; at < this.#settings.totalBytes; ) {
      const toldEnd = this.#statusEnd;
      const isNew = at >= toldEnd;
      const extent = await this.#extentAt(at);
      // The rest of a compressed unit has not been asked for.
      if (isNew && this.#isTold && at > toldEnd) this.#known.add(at, 'data');
      if (isNew && this.#isTold) this.#known.add(this.#statusEnd, this.#kind);
      else if (isNew) this.#known.stop();
      if (this.#isWork(extent.kind)) this.#dataBytes += extent.bytes;
      at += extent.bytes;
      await turns.next();
    }
    this.#statusEnd = 0;
    this.#known.rewind();
  }

  #isWork(kind: Kind): boolean {
    return kind === 'data' || (this.#settings.zeroes === null && kind === 'zero');
  }

  // ---- what is where -----------------------------------------------------------------------------------------

  /** The extent at `offset`, as far as it is handled in one go. */
  async #extentAt(offset: number): Promise<Extent> {
    const { totalBytes, compressBytes } = this.#settings;
    if (offset >= this.#statusEnd) {
      const known = this.#known.at(offset);
      if (known === null) await this.#readStatus(offset);
      else this.#useKnown(offset, known.end, known.kind);
    }
    let kind = this.#kind;
    let bytes = this.#statusEnd - offset;
    if (kind === 'data') bytes = Math.min(bytes, this.#pieceBytes(offset));
    if (compressBytes === null) return { offset, bytes, kind };
    // Compressed units are written as a whole, so one with any data in it is all data.
    if (bytes < compressBytes) {
      kind = 'data';
      bytes = Math.min(compressBytes, totalBytes - offset);
    } else {
      bytes -= bytes % compressBytes;
    }
    return { offset, bytes, kind };
  }

  #pieceBytes(offset: number): number {
    const mover = this.#movers.get(this.#sourceAt(offset))!;
    return asksKernel(mover) ? requestBytes(mover, 'data') : PIECE_BYTES;
  }

  #useKnown(offset: number, end: number, kind: Kind): void {
    const source = this.#sourceAt(offset);
    this.#statusEnd = Math.min(end, source.start + source.bytes);
    this.#kind = kind;
  }

  async #readStatus(offset: number): Promise<void> {
    const { targetBackingBytes, salvage } = this.#settings;
    const source = this.#sourceAt(offset);
    const within = offset - source.start;
    let length = source.bytes - within;
    const behindBacking = targetBackingBytes !== null && offset >= targetBackingBytes;
    if (targetBackingBytes !== null && !behindBacking) length = Math.min(length, targetBackingBytes - offset);
    const { node, backend } = source.image;
    // What the source leaves to its backing image, the target leaves to its own.
    const base = targetBackingBytes === null ? null : backingOf(skipFilters(node));
    let flags: number = Status.data;
    this.#isTold = true;
    try {
      const status = await backend.chainStatus(within, length, base);
      length = status.bytes;
      ({ flags } = status);
    } catch (error) {
      const reason = strerror(errnoOf(error));
      if (!salvage)
        throw new BlockError(`error while reading block status at offset ${offset}: ${reason}`, {
          errno: errnoOf(error),
        });
      this.#settings.output.warn(`error while reading block status at offset ${offset}: ${reason}`);
      length = Math.min(length, SECTOR_BYTES);
      this.#isTold = false;
    }
    const tail = (within + length) % source.alignmentBytes;
    if (length > tail) length -= tail;
    this.#statusEnd = offset + length;
    this.#kind = this.#kindOf(flags, behindBacking);
  }

  #kindOf(flags: number, behindBacking: boolean): Kind {
    if ((flags & Status.zero) !== 0) return behindBacking ? 'backing' : 'zero';
    if ((flags & Status.data) !== 0) return 'data';
    return this.#settings.targetBackingBytes === null ? 'data' : 'backing';
  }

  #sourceAt(offset: number): Source {
    return this.#settings.sources.find(({ start, bytes }) => offset < start + bytes)!;
  }

  // ---- workers -----------------------------------------------------------------------------------------------

  async #worker(): Promise<void> {
    for (;;) {
      let piece: Piece | null = null;
      try {
        piece = await this.#nextPiece();
        if (piece === null) return;
        if (piece.kind !== 'backing') await this.#move(piece);
      } catch (error) {
        this.#failure ??= { error };
      } finally {
        if (piece !== null) this.#end(piece);
      }
    }
  }

  #end(piece: Piece): void {
    piece.order.begun();
    piece.done();
    if (--this.#running === 0) this.#idle.wakeAll();
  }

  /**
   * Moves what lies in the page cache on both sides, piece by piece, as long as nothing has to wait: several pieces at
   * once would only be in each other's way then.
   */
  async #moveInTurns(): Promise<void> {
    const { totalBytes, target, zeroes, targetIsZero } = this.#settings;
    while (this.#running > 0) await this.#idle.wait();
    const turns = createTurns();
    holdOff(this.#waiting);
    while (this.#position < totalBytes && this.#failure === null) {
      const { offset, bytes, kind } = await this.#extentAt(this.#position);
      const source = this.#sourceAt(offset);
      let moved = bytes;
      if (kind === 'zero' && (zeroes === null || !targetIsZero)) return;
      if (kind === 'data') {
        const mover = this.#movers.get(source)!;
        moved = await target.node.layer.graphLock.withRead(async (guard) =>
          moveInTurn(mover, guard, offset - source.start, bytes),
        );
        if (moved > 0) worked(this.#waiting);
      }
      this.#position += moved;
      if (this.#isWork(kind)) await this.#account(moved);
      if (moved < bytes) return;
      await turns.next();
    }
  }

  /** The next piece nobody works on; null when there is none, or something has failed. */
  #nextPiece(): Promise<Piece | null> {
    return this.#next.with('the next piece', async () => {
      const { totalBytes, zeroes, inOrder, compressBytes } = this.#settings;
      if (this.#waiting.left > 0) this.#waiting.left--;
      else if (this.#movesInTurn) await this.#moveInTurns();
      if (this.#failure !== null || this.#position >= totalBytes) return null;
      let extent = await this.#extentAt(this.#position);
      if (zeroes === null && extent.kind === 'zero')
        extent = { ...extent, bytes: Math.min(extent.bytes, PIECE_BYTES) };
      this.#position += extent.bytes;
      this.#running++;
      if (this.#isWork(extent.kind)) await this.#account(extent.bytes);
      // One write is done by the kernel while the next is prepared; more would only wait for the file's lock.
      const turn = Promise.all([this.#lastStarted, this.#doneBeforeLast]).then(() => {
        // What has been read is not written any more.
        if (this.#failure !== null) throw this.#failure.error;
      });
      // Whoever fails before his turn does not look at it.
      turn.catch(() => undefined);
      const started = createSignal();
      const done = createSignal();
      this.#lastStarted = started.promise;
      this.#doneBeforeLast = this.#lastDone;
      this.#lastDone = done.promise;
      // Compressed clusters are written one by one: their order in the file does not matter.
      const order = inOrder && compressBytes === null ? { turn, begun: started.fire } : AT_ONCE;
      if (order === AT_ONCE) started.fire();
      return { ...extent, order, done: done.fire };
    });
  }

  /** Shows progress, in the steps in which the original works, and keeps to the rate. */
  async #account(bytes: number): Promise<void> {
    const step = this.#settings.compressBytes ?? bytes;
    for (let at = 0; at < bytes; at += step) {
      this.#dataDone += Math.min(step, bytes - at);
      this.#settings.progress.set((this.#dataDone / this.#dataBytes) * 100);
    }
    await this.#pace.wait(bytes);
  }

  // ---- data --------------------------------------------------------------------------------------------------

  async #move(piece: Piece): Promise<void> {
    const { salvage, target, zeroes } = this.#settings;
    const source = this.#sourceAt(piece.offset);
    const mover = this.#movers.get(source)!;
    const isWithin = piece.offset + piece.bytes <= source.start + source.bytes;
    const { graphLock } = target.node.layer;
    const kind = piece.kind === 'zero' && zeroes !== null ? 'zero' : 'data';
    if (kind === 'zero' || isWithin) {
      const failure = await graphLock.withRead((guard) =>
        moveExtent(mover, guard, piece.offset - source.start, piece.bytes, kind, piece.order),
      );
      if (failure === null) return;
      if (!failure.isRead || !salvage) throw this.#explained(failure, piece);
    }
    const memory = await this.#gather(piece);
    const vector = vectorOf(memory, 0, piece.bytes);
    try {
      await graphLock.withRead((guard) =>
        writeBuffer(mover, guard, piece.offset - source.start, vector, piece.order),
      );
    } catch (error) {
      throw this.#explained({ error, isRead: false, offset: 0 }, piece);
    }
  }

  #explained({ error, isRead }: CopyFailure, { offset }: Piece): unknown {
    // Somebody else has failed, and what he failed with is told.
    if (this.#failure !== null) return error;
    const doing = isRead ? 'reading' : 'writing';
    return new BlockError(`error while ${doing} at byte ${offset}: ${strerror(errnoOf(error))}`, {
      errno: errnoOf(error),
    });
  }

  /** Reads a piece that lies in several sources, or could not be read as a whole. */
  async #gather(piece: Piece): Promise<IoMemory> {
    const memory = allocateIoMemory(piece.bytes);
    const end = piece.offset + piece.bytes;
    for (let at = piece.offset; at < end; ) {
      const source = this.#sourceAt(at);
      const length = Math.min(end - at, source.start + source.bytes - at);
      await this.#readFrom(source, at, length, memory, at - piece.offset);
      at += length;
    }
    return memory;
  }

  async #readFrom(
    source: Source,
    offset: number,
    bytes: number,
    memory: IoMemory,
    position: number,
  ): Promise<void> {
    try {
      await source.image.backend.preadv(offset - source.start, bytes, vectorOf(memory, position, bytes), 0);
    } catch (error) {
      const reason = strerror(errnoOf(error));
      if (!this.#settings.salvage)
        throw new BlockError(`error while reading at byte ${offset}: ${reason}`, { errno: errnoOf(error) });
      if (bytes > SECTOR_BYTES) {
        // Sector by sector, so that no more is lost than must be.
        for (let at = 0; at < bytes; at += SECTOR_BYTES)
          await this.#readFrom(source, offset + at, SECTOR_BYTES, memory, position + at);
        return;
      }
      this.#settings.output.warn(`error while reading offset ${offset}: ${reason}`);
      memory.buf.fill(0, position, position + bytes);
    }
  }
}

function moverFor({ image, start }: Source, settings: CopySettings): Mover {
  const { target, targetIsZero, compressBytes, offload } = settings;
  const mover = createMover({
    source: () => image.node,
    target: () => target.node,
    clusterBytes: compressBytes ?? SECTOR_BYTES,
    targetStart: start,
    writeFlags: target.writeFlags,
    bufferBytes: PIECE_BYTES,
    findZeroes: zeroFinder(settings),
    leavesZeroes: targetIsZero ? 'always' : 'never',
  });
  mover.compress = compressBytes !== null;
  mover.useCopyRange = offload;
  return mover;
}

function zeroFinder({ zeroes, compressBytes }: CopySettings): ZeroFinder | null {
  if (zeroes === null) return null;
  if (compressBytes !== null) return (data) => firstUnits(data, compressBytes);
  return (data, offset) => firstRun(data, offset, zeroes);
}

function createSignal(): { readonly promise: Promise<void>; readonly fire: () => void } {
  let fire = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    fire = resolve;
  });
  return { promise, fire };
}

/** The compressed units at the start of `data` that are all zeroes, or all have data. */
function firstUnits(data: Buffer, unitBytes: number): { readonly bytes: number; readonly isData: boolean } {
  const isZeroUnit = (at: number): boolean =>
    isZero(data.subarray(at, Math.min(at + unitBytes, data.length)));
  const zero = isZeroUnit(0);
  let end = unitBytes;
  while (end < data.length && isZeroUnit(end) === zero) end += unitBytes;
  return { bytes: Math.min(end, data.length), isData: !zero };
}
