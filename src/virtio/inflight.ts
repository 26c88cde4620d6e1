/**
 * The record of requests under way, in memory that the front end keeps: a device that was killed and started again
 * reads there what it had begun and not finished.
 *
 * | at | field                                                                                              |
 * | -- | -------------------------------------------------------------------------------------------------- |
 * |  0 | features u64, version u16 (1), descriptors u16, last batch head u16, used index u16                  |
 * | 16 | per descriptor: inflight u8, padding 5, next u16, counter u64                                        |
 *
 * Source of the facts: vhost-user protocol, "Inflight I/O tracking", split virtqueues.
 */

import type { IoSegment } from '../aio/memory.ts';

const HEAD_BYTES = 16;
const STATE_BYTES = 16;
const VERSION = 1;
const Head = { version: 8, descriptors: 10, lastBatchHead: 12, usedIndex: 14 } as const;
const State = { inflight: 0, next: 6, counter: 8 } as const;

/** Bytes of the record of one queue. */
export function inflightBytes(queueSize: number): number {
  return Math.ceil((HEAD_BYTES + queueSize * STATE_BYTES) / 64) * 64;
}

export class InflightRecord {
  readonly #view: DataView;
  readonly #size: number;
  #counter = 0;

  /** Over one queue's part of the shared memory. */
  constructor({ mem, start, length }: IoSegment, queueSize: number) {
    this.#view = new DataView(mem.buf.buffer, mem.buf.byteOffset + start, length);
    this.#size = queueSize;
  }

  #state(head: number): number {
    return HEAD_BYTES + head * STATE_BYTES;
  }

  /**
   * Reads what a device before this one left, given the used ring's index; returns the heads of the requests to carry
   * out again, oldest first. Null: the record is new.
   */
  recover(usedIndex: number): number[] | null {
    const view = this.#view;
    if (view.getUint16(Head.version, true) !== VERSION) {
      view.setUint16(Head.version, VERSION, true);
      view.setUint16(Head.descriptors, this.#size, true);
      view.setUint16(Head.usedIndex, usedIndex, true);
      return null;
    }
    // The last batch was made known to the guest, but not crossed out here.
    let left = (usedIndex - view.getUint16(Head.usedIndex, true)) & 0xffff;
    for (let head = view.getUint16(Head.lastBatchHead, true); left > 0 && head < this.#size; left--) {
      view.setUint8(this.#state(head) + State.inflight, 0);
      head = view.getUint16(this.#state(head) + State.next, true);
    }
    view.setUint16(Head.usedIndex, usedIndex, true);
    const found: { readonly head: number; readonly counter: number }[] = [];
    for (let head = 0; head < this.#size; head++) {
      if (view.getUint8(this.#state(head) + State.inflight) !== 1) continue;
      found.push({ head, counter: Number(view.getBigUint64(this.#state(head) + State.counter, true)) });
    }
    found.sort((a, b) => a.counter - b.counter);
    this.#counter = (found.at(-1)?.counter ?? 0) + 1;
    return found.map(({ head }) => head);
  }

  /** A request is taken from the available ring. */
  begin(head: number): void {
    const at = this.#state(head);
    const counter = this.#counter++;
    this.#view.setUint32(at + State.counter, counter >>> 0, true);
    this.#view.setUint32(at + State.counter + 4, Math.floor(counter / 4294967296), true);
    this.#view.setUint8(at + State.inflight, 1);
  }

  /** A request is in the used ring, whose index is not changed yet. */
  end(head: number): void {
    this.#view.setUint16(
      this.#state(head) + State.next,
      this.#view.getUint16(Head.lastBatchHead, true),
      true,
    );
    this.#view.setUint16(Head.lastBatchHead, head, true);
  }

  /** The used ring's index covers the batch now. */
  commit(heads: readonly number[], usedIndex: number): void {
    for (const head of heads) this.#view.setUint8(this.#state(head) + State.inflight, 0);
    this.#view.setUint16(Head.usedIndex, usedIndex, true);
  }
}
