/**
 * Between the engine's byte streams and Node's streams, in both directions: TLS is spoken by node:tls, which wants a
 * Duplex below and is one above.
 */

import { Duplex } from 'node:stream';
import type { ByteStream } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory, type IoSegment } from '../../aio/memory.ts';
import { E } from '../../errors/errno.ts';

const READ_BYTES = 32 * 1024;

/** A Duplex over a byte stream; `received` has been read from it already. It owns the stream. */
export function duplexOf(stream: ByteStream, received: Buffer): Duplex {
  const rx = allocateIoMemory(READ_BYTES);
  let tx: IoMemory | null = null;
  let early: Buffer | null = received.length > 0 ? received : null;

  async function receive(duplex: Duplex): Promise<void> {
    const bytes = await stream.read({ mem: rx, start: 0, length: READ_BYTES });
    if (bytes < 0 || stream.closed) duplex.destroy();
    else duplex.push(bytes === 0 ? null : Buffer.from(rx.buf.subarray(0, bytes)));
  }

  async function send(chunk: Buffer): Promise<number> {
    if (tx === null || tx.buf.length < chunk.length)
      tx = allocateIoMemory(Math.max(chunk.length, READ_BYTES));
    chunk.copy(tx.buf);
    return stream.write([{ mem: tx, start: 0, length: chunk.length }]);
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
      void receive(this);
    },
    write(chunk: Buffer, _encoding, callback) {
      void send(chunk).then((result) => callback(result < 0 ? new Error('send failed') : null));
    },
    destroy(error, callback) {
      stream.close();
      callback(error);
    },
  });
}

/** A byte stream over a Duplex in paused mode. It owns the Duplex. */
export function streamOf(duplex: Duplex): ByteStream {
  let rest: Buffer | null = null;
  let ended = false;
  let wake: (() => void) | null = null;
  const notify = (): void => {
    wake?.();
    wake = null;
  };
  const end = (): void => {
    ended = true;
    notify();
  };
  duplex.on('readable', notify).on('end', end).on('close', end).on('error', end);

  async function read(segment: IoSegment): Promise<number> {
    for (;;) {
      rest ??= duplex.read() as Buffer | null;
      if (rest !== null) {
        const bytes = rest.copy(segment.mem.buf, segment.start, 0, Math.min(rest.length, segment.length));
        rest = bytes < rest.length ? rest.subarray(bytes) : null;
        return bytes;
      }
      if (duplex.errored) return -E.ECONNRESET;
      if (ended) return 0;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }

  function write(segments: readonly IoSegment[]): Promise<number> {
    if (duplex.destroyed) return Promise.resolve(-E.EPIPE);
    const parts = segments.map(({ mem, start, length }) => mem.buf.subarray(start, start + length));
    // One copy, so that small replies share a TLS record and the request buffers are free at once.
    const bytes = Buffer.concat(parts);
    return new Promise((resolve) => {
      duplex.write(bytes, (error) => resolve(error ? -E.EPIPE : bytes.length));
    });
  }

  return {
    read,
    write,
    close: () => {
      duplex.destroy();
      end();
    },
    get closed() {
      return duplex.destroyed;
    },
  };
}
