/**
 * The ring buffer device: keeps the last bytes written to it, for ringbuf-read.
 */

import type { ChardevRingbuf } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { type ChardevBackend, ignore } from './backend.ts';

const DEFAULT_BYTES = 65536;
/** Larger than any use of a monitor's output; bounds what one command can allocate. */
const MAX_BYTES = 2 ** 30;

export interface RingbufBackend extends ChardevBackend {
  readonly kind: 'ringbuf' | 'memory';
  /** Takes up to `bytes` of the oldest bytes out of the buffer. */
  read(bytes: number): Buffer;
}

/** Opens a ring buffer; `memory` is the deprecated name of the same thing. */
export function openRingbuf(options: ChardevRingbuf, kind: 'ringbuf' | 'memory'): RingbufBackend {
  const size = options.size ?? DEFAULT_BYTES;
  if (size <= 0 || size > MAX_BYTES || (size & (size - 1)) !== 0) {
    throw new BlockError(`size of ${kind === 'memory' ? 'ringbuf' : kind} chardev must be power of two`);
  }
  const ring = Buffer.alloc(size);
  // Counters of all bytes ever written and taken; written - taken is never more than the size.
  let written = 0;
  let taken = 0;
  return {
    kind,
    typeName: `chardev-${kind}`,
    accessors: {},
    filename: () => kind,
    start: (events) => events.opened(),
    stop: ignore,
    write: (data) => {
      const kept = data.subarray(Math.max(0, data.length - size));
      written += data.length - kept.length;
      const at = written % size;
      const untilEnd = kept.copy(ring, at);
      kept.copy(ring, 0, untilEnd);
      written += kept.length;
      taken = Math.max(taken, written - size);
    },
    backlogBytes: () => 0,
    setReading: ignore,
    read: (bytes) => {
      const count = Math.min(bytes, written - taken);
      const at = taken % size;
      const untilEnd = Math.min(count, size - at);
      taken += count;
      return Buffer.concat([ring.subarray(at, at + untilEnd), ring.subarray(0, count - untilEnd)]);
    },
    close: ignore,
  };
}

/** Whether a backend is a ring buffer. */
export function isRingbuf(backend: ChardevBackend): backend is RingbufBackend {
  return backend.kind === 'ringbuf' || backend.kind === 'memory';
}
