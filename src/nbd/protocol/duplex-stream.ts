/**
 * Between the engine's byte streams and Node's streams, in both directions: TLS is spoken by node:tls, which wants a
 * Duplex below and is one above.
 */

import { Duplex } from 'node:stream';
import { plug, unplug } from '../../aio/defer.ts';
import { type ByteStream, readSome, sendAll, writeAll } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory, type IoSegment } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';

const READ_BYTES = 32 * 1024;

/** A Duplex over a byte stream; `received` has been read from it already. It owns the stream. */
export function duplexOf(stream: ByteStream, received: Buffer): Duplex {
  const rx = allocateIoMemory(READ_BYTES);
  let tx: IoMemory | null = null;
  let early: Buffer | null = received.length > 0 ? received : null;

  /** Passes on what has arrived; how much there was. */
  function receive(duplex: Duplex): number {
    const bytes = stream.receive(rx, 0, READ_BYTES);
    if (bytes === -E.EAGAIN) return 0;
    if (bytes < 0) {
      stream.watchReadable(null);
      duplex.destroy();
      return 0;
    }
    const takesMore = duplex.push(bytes === 0 ? null : Buffer.from(rx.buf.subarray(0, bytes)));
    if (bytes === 0 || !takesMore) stream.watchReadable(null);
    return 1;
  }

  return new Duplex({
    allowHalfOpen: true,
    read() {
      if (early !== null) {
        const chunk = early;
        early = null;
        this.push(chunk);
        return;
      }
      stream.watchReadable(() => receive(this));
    },
    write(chunk: Buffer, _encoding, callback) {
      if (tx === null || tx.buf.length < chunk.length)
        tx = allocateIoMemory(Math.max(chunk.length, READ_BYTES));
      chunk.copy(tx.buf);
      sendAll(stream, [{ mem: tx, start: 0, length: chunk.length }], 0, (result) =>
        callback(result < 0 ? new Error('send failed') : null),
      );
    },
    destroy(error, callback) {
      stream.close();
      callback(error);
    },
  });
}

/** A byte stream over a Duplex in paused mode. It owns the Duplex. */
export function streamOf(duplex: Duplex): ByteStream {
  return new DuplexStream(duplex);
}

class DuplexStream implements ByteStream {
  owed: (() => number) | null = null;
  readonly #duplex: Duplex;
  #rest: Buffer | null = null;
  #ended = false;
  #onReadable: (() => number) | null = null;
  #onWritable: (() => void) | null = null;
  #isNotifying = false;
  #isWriting = false;
  readonly #notify = (): void => {
    this.#isNotifying = false;
    if (this.#onReadable === null) return;
    plug();
    try {
      this.#onReadable();
      // The event comes once for what has arrived, which may be more than is taken at a time.
      if (this.#onReadable !== null && this.#hasMore) this.#notifyLater();
    } finally {
      unplug();
    }
  };
  readonly #written = (): void => {
    this.#isWriting = false;
    this.#drained();
  };
  readonly #drained = (): void => {
    const onWritable = this.#onWritable;
    this.#onWritable = null;
    onWritable?.();
  };

  constructor(duplex: Duplex) {
    this.#duplex = duplex;
    const end = (): void => {
      this.#ended = true;
      this.#notify();
      this.#drained();
    };
    duplex.on('readable', this.#notify);
    duplex.on('end', end).on('close', end).on('error', end);
  }

  get #hasMore(): boolean {
    return this.#rest !== null || this.#duplex.readableLength > 0;
  }

  #notifyLater(): void {
    if (this.#isNotifying) return;
    this.#isNotifying = true;
    setImmediate(this.#notify);
  }

  get closed(): boolean {
    return this.#duplex.destroyed;
  }

  receive(mem: IoMemory, start: number, length: number): number {
    this.#rest ??= this.#duplex.read() as Buffer | null;
    const rest = this.#rest;
    if (rest !== null) {
      const bytes = rest.copy(mem.buf, start, 0, Math.min(rest.length, length));
      this.#rest = bytes < rest.length ? rest.subarray(bytes) : null;
      return bytes;
    }
    if (this.#duplex.errored) return -E.ECONNRESET;
    return this.#ended || this.#duplex.destroyed ? 0 : -E.EAGAIN;
  }

  watchReadable(onReadable: (() => number) | null): void {
    // Who goes on watching is told when something comes; who begins to, of what is there already.
    if (onReadable !== null && onReadable !== this.#onReadable) this.#notifyLater();
    this.#onReadable = onReadable;
  }

  /** One copy, so that small replies share a TLS record and the memory is free at once. */
  send(segments: readonly IoSegment[], first: number): number {
    const duplex = this.#duplex;
    if (duplex.destroyed) return -E.EPIPE;
    // What is answered while a record is on its way goes with the next one.
    if (this.#isWriting) return -E.EAGAIN;
    const parts = segments
      .slice(first)
      .map(({ mem, start, length }) => mem.buf.subarray(start, start + length));
    const bytes = Buffer.concat(parts);
    this.#isWriting = true;
    duplex.write(bytes, this.#written);
    return bytes.length;
  }

  whenWritable(onWritable: () => void): void {
    this.#onWritable = onWritable;
  }

  hasRoomFor(): boolean {
    return !this.#isWriting;
  }

  read(segment: IoSegment): Promise<number> {
    return readSome(this, segment);
  }

  write(segments: readonly IoSegment[]): Promise<number> {
    return writeAll(this, segments);
  }

  close(): void {
    this.#duplex.destroy();
    this.#ended = true;
    process.nextTick(() => {
      this.#notify();
      this.#drained();
    });
  }
}
