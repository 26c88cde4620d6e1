/**
 * Readahead with windows that grow: what a reader that goes from front to back is going to ask for is fetched before
 * it does.
 *
 * A few streams are followed at once. A read that starts where a stream is expected to go on makes its window twice as
 * large, up to a limit; a read elsewhere starts a new stream, in the place of the one unused for longest, and fetches
 * exactly what it asks for. A stream's window is filled with pieces, each one fetch. Reads take what pieces have, wait
 * for those that are under way, and fetch the rest themselves into their own memory, so that large and parallel reads
 * are never copied. A piece goes when its stream has read it or the memory is needed.
 *
 * Here: streams, pieces, their memory. Not here: fetching (the caller's), retries (the caller's).
 */

import {
  allocateIoMemory,
  copyToVector,
  type IoMemory,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';
import { errnoOf, ioError } from '../../errors/error.ts';

/** Reads exactly [offset, offset + vec.bytes) into `vec`. */
export type Fetch = (offset: number, vec: IoVector) => Promise<void>;

export interface WindowSettings {
  /** The first window of a stream, in bytes; 0: nothing is read ahead. */
  readonly firstBytes: number;
  /** No window, and all pieces of all streams together, are larger, in bytes. */
  readonly maxBytes: number;
}

interface Stream {
  /** Where the next read of it is expected. */
  next: number;
  /** How far ahead of that pieces are fetched, in bytes. */
  windowBytes: number;
  /** Where the next piece starts. */
  fetched: number;
  usedAt: number;
}

interface Piece {
  readonly offset: number;
  readonly end: number;
  readonly memory: IoMemory;
  /** Resolves with whether the piece can be used. Never rejects. */
  readonly ready: Promise<boolean>;
  arrived: boolean;
  /** Everything was given up while it was under way, and those who wait for it with it. */
  cancelled: boolean;
  /** Bytes that readers have taken; a piece all of which was taken has done its work. */
  takenBytes: number;
  /** Readers that copy out of it or wait for it; its memory stays until they are done. */
  users: number;
  dropped: boolean;
  /** Its memory is another piece's, perhaps. */
  released: boolean;
}

const MAX_STREAMS = 8;
/** Smallest and largest piece in bytes: a piece is a quarter of its window within these limits. */
const MIN_PIECE_BYTES = 64 * 1024;
const MAX_PIECE_BYTES = 1024 * 1024;
/** Pieces' memory kept for later ones. */
const MAX_SPARE = 4;
/** So much that readers are fetching themselves keeps a link busy. */
const BUSY_BYTES = 2 * 1024 * 1024;
/** A read still belongs to a stream when it comes so many reads too early or too late. */
const OUT_OF_ORDER_READS = 8;
/** Reads elsewhere after which what was fetched for a stream is not kept for it any more. */
const FORGOTTEN_AFTER_READS = 64;

export interface ReadWindows {
  /** `own` fetches what this read needs itself, `ahead` what later ones may; default: as it was created with. */
  read(offset: number, vec: IoVector, own?: Fetch, ahead?: Fetch): Promise<void>;
  /** What is in the range has changed, or is about to. */
  invalidate(offset: number, bytes: number): void;
  /** Bytes of memory that pieces hold. */
  readonly heldBytes: number;
}

/** Windows over something that `fetch` reads and that ends at `sizeBytes()`. */
export function createReadWindows(
  settings: WindowSettings,
  fetch: Fetch,
  sizeBytes: () => number,
): ReadWindows {
  const { firstBytes, maxBytes } = settings;
  const streams: Stream[] = [];
  /** By offset; never overlapping. */
  const pieces: Piece[] = [];
  /** Memory of pieces that are gone, for the next ones: new memory costs page faults and garbage collections. */
  const spare: IoMemory[] = [];
  let heldBytes = 0;
  /** Bytes that readers are fetching themselves. */
  let ownBytes = 0;
  let clock = 0;

  // ---- pieces ------------------------------------------------------------------------------------------------

  function drop(piece: Piece): void {
    if (piece.dropped) return;
    piece.dropped = true;
    pieces.splice(pieces.indexOf(piece), 1);
    heldBytes -= piece.end - piece.offset;
    release(piece);
  }

  /** The memory is free once nothing is received into it and nobody copies out of it any more. */
  function release(piece: Piece): void {
    const { dropped, arrived, users, memory } = piece;
    if (!dropped || !arrived || users > 0 || piece.released) return;
    piece.released = true;
    if (memory.buf.length === MAX_PIECE_BYTES && spare.length < MAX_SPARE) spare.push(memory);
  }

  /** Index of the first piece that ends after `offset`. */
  function firstPieceAfter(offset: number): number {
    let low = 0;
    let high = pieces.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pieces[middle]!.end > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  function startPiece(offset: number, end: number, ahead: Fetch): void {
    const memory = (end - offset === MAX_PIECE_BYTES && spare.pop()) || allocateIoMemory(end - offset);
    const piece: Piece = {
      offset,
      end,
      memory,
      arrived: false,
      cancelled: false,
      takenBytes: 0,
      users: 0,
      dropped: false,
      released: false,
      ready: ahead(offset, vectorOf(memory)).then(
        () => {
          piece.arrived = true;
          release(piece);
          return true;
        },
        (error: unknown) => {
          // Whoever needs it fetches it himself, and gets the error if it is still there.
          drop(piece);
          piece.cancelled = errnoOf(error) === E.ECANCELED;
          return false;
        },
      ),
    };
    pieces.splice(firstPieceAfter(offset), 0, piece);
    heldBytes += end - offset;
  }

  /** Makes room by giving up pieces that have arrived and are read in part or belong to no stream any more. */
  function makeRoom(bytes: number): boolean {
    for (const piece of [...pieces]) {
      if (heldBytes + bytes <= maxBytes) return true;
      const isAhead = streams.some(
        ({ next, fetched, usedAt }) =>
          clock - usedAt < FORGOTTEN_AFTER_READS && piece.end > next && piece.offset < fetched,
      );
      if (piece.users === 0 && piece.arrived && !isAhead) drop(piece);
    }
    return heldBytes + bytes <= maxBytes;
  }

  // ---- streams -----------------------------------------------------------------------------------------------

  /** The stream that a read continues, or a new one. */
  function follow(offset: number, end: number): Stream | null {
    clock++;
    // Readers with several requests under way may come a little out of order.
    const slack = OUT_OF_ORDER_READS * (end - offset);
    const near =
      streams.find(({ next }) => next === offset) ??
      streams.find(({ next }) => end > next - slack && offset <= next + slack);
    if (near !== undefined) {
      near.usedAt = clock;
      near.next = Math.max(near.next, end);
      near.windowBytes = Math.min(maxBytes, Math.max(firstBytes, near.windowBytes * 2));
      return near;
    }
    const stream: Stream = { next: end, windowBytes: firstBytes / 2, fetched: end, usedAt: clock };
    if (streams.length < MAX_STREAMS) streams.push(stream);
    else {
      const oldest = streams.reduce((a, b) => (b.usedAt < a.usedAt ? b : a));
      streams[streams.indexOf(oldest)] = stream;
    }
    return null;
  }

  function fill(stream: Stream, ahead: Fetch): void {
    const end = Math.min(sizeBytes(), stream.next + stream.windowBytes);
    const pieceBytes = Math.min(MAX_PIECE_BYTES, Math.max(MIN_PIECE_BYTES, stream.windowBytes / 4));
    stream.fetched = Math.max(stream.fetched, stream.next);
    while (stream.fetched < end) {
      const covering = pieces[firstPieceAfter(stream.fetched)];
      if (covering !== undefined && covering.offset <= stream.fetched) {
        stream.fetched = covering.end;
        continue;
      }
      // Not a crumb at a time: the window moves on with every read.
      const to = Math.min(
        sizeBytes(),
        stream.fetched + pieceBytes,
        covering?.offset ?? Number.POSITIVE_INFINITY,
      );
      if (to > end && to < sizeBytes()) return;
      if (!makeRoom(to - stream.fetched)) return;
      startPiece(stream.fetched, to, ahead);
      stream.fetched = to;
    }
  }

  // ---- reads -------------------------------------------------------------------------------------------------

  async function take(piece: Piece, offset: number, vec: IoVector, own: Fetch): Promise<void> {
    piece.users++;
    try {
      if (piece.arrived || (await piece.ready)) {
        const at = offset - piece.offset;
        copyToVector(vec, piece.memory.buf.subarray(at, at + vec.bytes));
        piece.takenBytes += vec.bytes;
        return;
      }
    } finally {
      piece.users--;
      if (piece.takenBytes >= piece.end - piece.offset) drop(piece);
      release(piece);
    }
    if (piece.cancelled) throw ioError(E.ECANCELED);
    await own(offset, vec);
  }

  /** What the pieces have and what they have not, in order. */
  function plan(offset: number, end: number): { from: number; to: number; piece: Piece | null }[] {
    const parts: { from: number; to: number; piece: Piece | null }[] = [];
    let index = firstPieceAfter(offset);
    for (let from = offset; from < end; ) {
      const next = pieces[index];
      const isInside = next !== undefined && next.offset <= from;
      const to = Math.min(end, isInside ? next.end : (next?.offset ?? end));
      parts.push({ from, to, piece: isInside ? next : null });
      if (isInside) index++;
      from = to;
    }
    return parts;
  }

  function start(offset: number, vec: IoVector, own: Fetch): Promise<void>[] {
    return plan(offset, offset + vec.bytes).map(({ from, to, piece }) => {
      const part = sliceVector(vec, from - offset, to - from);
      return piece === null ? fetchOwn(from, part, own) : take(piece, from, part, own);
    });
  }

  function fetchOwn(offset: number, vec: IoVector, own: Fetch): Promise<void> {
    ownBytes += vec.bytes;
    return own(offset, vec).finally(() => {
      ownBytes -= vec.bytes;
    });
  }

  async function all(running: readonly Promise<void>[]): Promise<void> {
    // Every part is over before the caller may reuse the memory.
    for (const result of await Promise.allSettled(running))
      if (result.status === 'rejected') throw result.reason;
  }

  return {
    read(offset, vec, own = fetch, ahead = fetch) {
      if (firstBytes === 0) return own(offset, vec);
      const stream = follow(offset, offset + vec.bytes);
      const running = start(offset, vec, own);
      if (stream !== null && ownBytes < BUSY_BYTES) fill(stream, ahead);
      return running.length === 1 ? running[0]! : all(running);
    },
    invalidate(offset, bytes) {
      const end = offset + bytes;
      for (let i = firstPieceAfter(offset); i < pieces.length && pieces[i]!.offset < end; ) drop(pieces[i]!);
      for (const stream of streams)
        if (stream.fetched > offset) stream.fetched = Math.max(stream.next, offset);
    },
    get heldBytes() {
      return heldBytes;
    },
  };
}
