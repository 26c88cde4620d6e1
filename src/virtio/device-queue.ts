/**
 * The device's side of a split virtqueue: takes requests from the available ring, gives them back in the used ring.
 *
 * Every number that comes out of the rings is read once and checked before it is used; a queue whose rings make no
 * sense is broken, and stays so until it is set up again. Indices are read and written with Atomics: what was written
 * before an index is there when the index is, and between publishing ours and reading what the guest wants to hear
 * stands a full fence.
 */

import { clearEventFd, signalEventFd } from '../aio/descriptors.ts';
import type { IoSegment } from '../aio/memory.ts';
import type { DirtyLog } from './dirty-log.ts';
import type { GuestMemory } from './guest-memory.ts';
import type { InflightRecord } from './inflight.ts';
import {
  availableBytes,
  DESCRIPTOR_BYTES,
  DescriptorFlag,
  NO_NOTIFICATION,
  needsEvent,
  usedBytes,
} from './ring.ts';

const TWO_32 = 4294967296;
/** Most parts of a request: more than drivers use (SEGMENTS_MAX), and as many as one system call takes. */
const PARTS_MAX = 1024;

/** A request's memory, in the order in which the guest gave it. */
export interface Chain {
  readonly head: number;
  /** For the device to read. */
  readonly readable: IoSegment[];
  readonly readableBytes: number;
  /** For the device to write to. */
  readonly writable: IoSegment[];
  readonly writableBytes: number;
}

/** Where the parts of the ring are, as addresses of the front end's. */
export interface RingAddresses {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
}

interface Ring {
  readonly descriptors: Uint32Array;
  /** flags, index, heads, used_event. */
  readonly available: Uint16Array;
  /** flags, index, ..., avail_event. */
  readonly used16: Uint16Array;
  /** Entry n is at 1 + 2 n. */
  readonly used32: Uint32Array;
}

export class DeviceQueue {
  size = 0;
  addresses: RingAddresses | null = null;
  kickFd = -1;
  callFd = -1;
  errFd = -1;
  enabled = false;
  /** A kick has come since it was set up. */
  started = false;
  /** Why it is not served any more. */
  broken: string | null = null;
  indirect = false;
  eventIndex = false;
  inflight: InflightRecord | null = null;
  /** Where what is written to guest memory is told, while a front end wants to know. */
  dirtyLog: DirtyLog | null = null;
  /** Where the used ring is in the log, if writes to it are to be told. */
  usedLogAddress: number | null = null;
  /** The next one to look at in the available ring. */
  availableIndex = 0;
  /** Requests taken and not given back. */
  pending = 0;
  /** Heads of requests that an earlier session has begun and not finished: they come before the available ring. */
  #again: readonly number[] = [];
  readonly #memory: GuestMemory;
  #ring: Ring | null = null;
  /** The used ring's index as the guest knows it, and how many entries were written behind it. */
  #usedIndex = 0;
  readonly #batch: number[] = [];

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Whether the rings are in place. */
  get ready(): boolean {
    return this.#ring !== null && this.broken === null;
  }

  /** Looks for the rings in memory. False: they are not where the front end says. */
  map(): boolean {
    const { addresses, size } = this;
    this.#ring = null;
    if (addresses === null || size === 0 || (size & (size - 1)) !== 0) return false;
    const part = (address: number, length: number, alignment: number): IoSegment | null =>
      address % alignment === 0 ? this.#memory.ringPart(address, length) : null;
    const descriptors = part(addresses.descriptors, size * DESCRIPTOR_BYTES, 16);
    const available = part(addresses.available, availableBytes(size), 2);
    const used = part(addresses.used, usedBytes(size), 4);
    if (descriptors === null || available === null || used === null) return false;
    // Mapped memory begins at a page: what is aligned for the front end may not be so here.
    const at = ({ mem, start }: IoSegment): number => mem.buf.byteOffset + start;
    if (at(descriptors) % 4 !== 0 || at(available) % 2 !== 0 || at(used) % 4 !== 0) return false;
    this.#ring = {
      descriptors: new Uint32Array(descriptors.mem.buf.buffer, at(descriptors), size * 4),
      available: new Uint16Array(available.mem.buf.buffer, at(available), 3 + size),
      used16: new Uint16Array(used.mem.buf.buffer, at(used), 3 + 4 * size),
      used32: new Uint32Array(used.mem.buf.buffer, at(used), 1 + 2 * size),
    };
    this.#usedIndex = Atomics.load(this.#ring.used16, 1);
    return true;
  }

  /** The rings may go away. */
  unmap(): void {
    this.#ring = null;
    this.#batch.length = 0;
  }

  /**
   * Goes on where an earlier session has ended, which left these heads unfinished. The available index follows from
   * them: the front end's base may be older, if that session gave requests back after its socket was closed, and taking
   * those again would complete them twice.
   */
  goOnWith(heads: readonly number[]): void {
    this.#again = heads;
    this.availableIndex = (this.#usedIndex + heads.length) & 0xffff;
  }

  /** What goOnWith() has brought is not to be begun by this session any more. */
  forgetUnfinished(): void {
    this.#again = [];
  }

  get hasUnfinished(): boolean {
    return this.#again.length > 0 && this.ready;
  }

  get usedIndex(): number {
    return this.#usedIndex;
  }

  /** Whether a request waits in the available ring. */
  get hasAvailable(): boolean {
    const ring = this.#ring;
    if (ring === null || this.broken !== null) return false;
    return this.#again.length > 0 || Atomics.load(ring.available, 1) !== this.availableIndex;
  }

  /** Takes the next request; null: there is none, or the queue is broken. */
  take(): Chain | null {
    const ring = this.#ring;
    if (ring === null || this.broken !== null) return null;
    if (this.#again.length > 0) {
      const [unfinished, ...rest] = this.#again;
      this.#again = rest;
      return this.#takeHead(unfinished!);
    }
    const waiting = (Atomics.load(ring.available, 1) - this.availableIndex) & 0xffff;
    if (waiting === 0) return null;
    if (waiting > this.size) return this.fail(`the available index is ${waiting} ahead`);
    const head = ring.available[2 + (this.availableIndex & (this.size - 1))]!;
    this.availableIndex = (this.availableIndex + 1) & 0xffff;
    return this.#takeHead(head);
  }

  /** Takes the request that begins at descriptor `head`. */
  #takeHead(head: number): Chain | null {
    const chain = this.#walk(head);
    if (chain === null) return null;
    this.inflight?.begin(head);
    this.pending++;
    return chain;
  }

  #walk(head: number): Chain | null {
    const ring = this.#ring as Ring;
    const readable: IoSegment[] = [];
    const writable: IoSegment[] = [];
    let readableBytes = 0;
    let writableBytes = 0;
    let table = ring.descriptors;
    let count = this.size;
    let isIndirect = false;
    let index = head;
    // A chain is no longer than its table; one of the table's own entries may lead to an indirect one.
    for (let left = this.size; ; left--) {
      if (index >= count) return this.fail(`descriptor ${index} of ${count}`);
      if (left === 0) return this.fail('descriptors in a circle');
      const address = table[index * 4]! + table[index * 4 + 1]! * TWO_32;
      const length = table[index * 4 + 2]!;
      const word = table[index * 4 + 3]!;
      if ((word & DescriptorFlag.indirect) !== 0) {
        if (!this.indirect || isIndirect || (word & DescriptorFlag.next) !== 0)
          return this.fail('an indirect descriptor out of place');
        const inner = this.#indirectTable(address, length);
        if (inner === null) return this.fail('an indirect table out of memory or of an odd length');
        isIndirect = true;
        table = inner;
        count = inner.length / 4;
        left = count + 1;
        index = 0;
        continue;
      }
      const isWrite = (word & DescriptorFlag.write) !== 0;
      if (!isWrite && writable.length > 0) return this.fail('a readable descriptor behind a writable one');
      if (length === 0 || !this.#memory.append(address, length, isWrite ? writable : readable))
        return this.fail(`descriptor outside of memory: ${length} bytes at ${address}`);
      if (isWrite) writableBytes += length;
      else readableBytes += length;
      if (readable.length + writable.length > PARTS_MAX) return this.fail('a request of too many parts');
      if ((word & DescriptorFlag.next) === 0) break;
      index = word >>> 16;
    }
    return { head, readable, readableBytes, writable, writableBytes };
  }

  /** A copy of an indirect table: the guest may change its own, and it may lie across windows. */
  #indirectTable(address: number, length: number): Uint32Array | null {
    if (length === 0 || length % DESCRIPTOR_BYTES !== 0 || length / DESCRIPTOR_BYTES > this.size) return null;
    const segments: IoSegment[] = [];
    if (!this.#memory.append(address, length, segments)) return null;
    const table = new Uint32Array(length / 4);
    const bytes = new Uint8Array(table.buffer);
    let at = 0;
    for (const { mem, start, length: part } of segments) {
      bytes.set(mem.buf.subarray(start, start + part), at);
      at += part;
    }
    return table;
  }

  /** The rings make no sense: the queue is served no more, and the front end hears of it. */
  fail(why: string): null {
    this.broken = why;
    if (this.errFd >= 0) signalEventFd(this.errFd);
    return null;
  }

  /** Gives a request back; `written` bytes of its memory were written to. The guest learns of it by publish(). */
  give(chain: Chain, written: number): void {
    const { head } = chain;
    this.pending--;
    // All of it: what has failed may have written a part.
    if (this.dirtyLog !== null) this.#logData(this.dirtyLog, chain.writable);
    const ring = this.#ring;
    if (ring === null) return;
    const at = 1 + 2 * ((this.#usedIndex + this.#batch.length) & (this.size - 1));
    ring.used32[at] = head;
    ring.used32[at + 1] = written;
    this.#batch.push(head);
    this.inflight?.end(head);
  }

  /** Tells the guest of everything given back, and wakes it if it wants to be. */
  publish(): void {
    const ring = this.#ring;
    const batch = this.#batch;
    if (ring === null || batch.length === 0) return;
    const old = this.#usedIndex;
    const now = (old + batch.length) & 0xffff;
    // Stores are in order, and this one is a full fence: the guest's wish is read behind it.
    Atomics.store(ring.used16, 1, now);
    this.#usedIndex = now;
    this.inflight?.commit(batch, now);
    this.#logUsed(0, 4);
    for (let i = 0; i < batch.length; i++) this.#logUsed(4 + 8 * ((old + i) & (this.size - 1)), 8);
    batch.length = 0;
    const wanted = this.eventIndex
      ? needsEvent(Atomics.load(ring.available, 2 + this.size), now, old)
      : (Atomics.load(ring.available, 0) & NO_NOTIFICATION) === 0;
    if (wanted && this.callFd >= 0) signalEventFd(this.callFd);
  }

  /** The guest need not kick: the ring is being looked at. */
  disableKicks(): void {
    const ring = this.#ring;
    // With event indices there is nothing to do: the guest stays silent until it passes the one it knows.
    if (ring === null || this.eventIndex) return;
    Atomics.store(ring.used16, 0, NO_NOTIFICATION);
    this.#logUsed(0, 4);
  }

  /** The guest is to kick for the next request. Whoever calls this looks once more afterwards. */
  enableKicks(): void {
    const ring = this.#ring;
    if (ring === null) return;
    if (this.eventIndex) {
      Atomics.store(ring.used16, 2 + 4 * this.size, this.availableIndex);
      this.#logUsed(4 + 8 * this.size, 2);
    } else {
      Atomics.store(ring.used16, 0, 0);
      this.#logUsed(0, 4);
    }
  }

  // ---- the log of a migration --------------------------------------------------------------------------------

  /** These were written to. */
  #logData(log: DirtyLog, segments: readonly IoSegment[]): void {
    for (const segment of segments) {
      const address = this.#memory.addressOf(segment);
      if (address !== null) log.mark(address, segment.length);
    }
    log.tell();
  }

  /** Bytes of the used ring were written to. */
  #logUsed(at: number, length: number): void {
    if (this.dirtyLog === null || this.usedLogAddress === null) return;
    this.dirtyLog.mark(this.usedLogAddress + at, length);
  }

  /** Takes notice of a kick. */
  acknowledgeKick(): void {
    if (this.kickFd >= 0) clearEventFd(this.kickFd);
  }
}
