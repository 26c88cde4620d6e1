/**
 * A driver of virtio-blk disks over a vhost-user front end: reads and writes as promises.
 *
 * Each request has a slot: a place in shared memory for its header, its data (which is copied, since the device sees
 * that memory only) and its status. Requests go to the queues in turn; one without a free slot waits.
 */

import { deferCall } from '../aio/defer.ts';
import { clearEventFd } from '../aio/descriptors.ts';
import { copyFromVector, copyToVector, type IoVector } from '../aio/memory.ts';
import { E } from '../errors/errno.ts';
import { ioError } from '../errors/error.ts';
import {
  CONFIG_BYTES,
  type DiskConfig,
  decodeConfig,
  RANGE_BYTES,
  RANGE_UNMAP,
  REQUEST_HEADER_BYTES,
  RequestStatus,
  RequestType,
  SECTOR_BYTES,
} from './block.ts';
import type { Part } from './driver-queue.ts';
import { DRIVER_FEATURES, DRIVER_PROTOCOL_FEATURES, FrontEnd } from './vhost-user/front-end.ts';

/** Longest read or write. */
export const SLOT_DATA_BYTES = 128 * 1024;
/** Header, range or status of a request: a place of its own before the data of all. */
const SLOT_HEAD_BYTES = 64;
const STATUS_AT = 48;

interface Slot {
  readonly queue: number;
  /** Positions in memory, which are guest addresses. */
  readonly headAt: number;
  readonly dataAt: number;
  /** The request in it: what it is made of, where its data go, who waits. */
  parts: readonly Part[];
  target: IoVector | null;
  resolve: (() => void) | null;
  reject: ((error: Error) => void) | null;
}

export interface BlockDriverSettings {
  readonly path: string;
  readonly queues: number;
  /** Requests of a queue under way at a time. */
  readonly depth: number;
  readonly reconnect: boolean;
  readonly configChanged?: (config: DiskConfig) => void;
  readonly protocolFeatures?: readonly number[];
}

export class VirtioBlockDriver {
  config: DiskConfig = {
    sizeBytes: 0,
    segmentsMax: 0,
    blockBytes: SECTOR_BYTES,
    queues: 0,
    discardSectorsMax: 0,
    writeZeroesSectorsMax: 0,
  };
  readonly #settings: BlockDriverSettings;
  #frontEnd: FrontEnd | null = null;
  readonly #free: Slot[] = [];
  /** In the rings, by queue and head. */
  readonly #busy: Map<number, Slot>[] = [];
  readonly #waiting: (() => void)[] = [];
  #failure: string | null = null;

  /** Use open(). */
  constructor(settings: BlockDriverSettings) {
    this.#settings = settings;
  }

  /** Connects to the back end; throws BlockError. */
  static async open(settings: BlockDriverSettings): Promise<VirtioBlockDriver> {
    const driver = new VirtioBlockDriver(settings);
    const { path, queues, depth, reconnect } = settings;
    // A request takes three descriptors: header, data, status.
    const queueSize = 2 ** Math.ceil(Math.log2(depth * 3));
    const slotCount = queues * depth;
    const frontEnd = await FrontEnd.open({
      path,
      queues,
      queueSize,
      dataBytes: slotCount * (SLOT_HEAD_BYTES + SLOT_DATA_BYTES) + 4096,
      features: DRIVER_FEATURES,
      protocolFeatures: settings.protocolFeatures ?? DRIVER_PROTOCOL_FEATURES,
      reconnect,
      called: (queue) => driver.#called(queue),
      ringsRenewed: () => driver.#putAgain(),
      connected: () => void driver.#readConfig(),
      lost: (why) => driver.#lost(why),
      configChanged: () => void driver.#readConfig(),
    });
    driver.#frontEnd = frontEnd;
    try {
      driver.config = decodeConfig(await frontEnd.readConfig(CONFIG_BYTES));
    } catch (error) {
      driver.close();
      throw error;
    }
    driver.#makeSlots(frontEnd, depth);
    return driver;
  }

  #makeSlots(frontEnd: FrontEnd, depth: number): void {
    const { dataAddress, queueCount } = frontEnd;
    const count = queueCount * depth;
    const dataAt = Math.ceil((dataAddress + count * SLOT_HEAD_BYTES) / 4096) * 4096;
    for (let i = count - 1; i >= 0; i--) {
      this.#free.push({
        queue: i % queueCount,
        headAt: dataAddress + i * SLOT_HEAD_BYTES,
        dataAt: dataAt + i * SLOT_DATA_BYTES,
        parts: [],
        target: null,
        resolve: null,
        reject: null,
      });
    }
    for (let i = 0; i < queueCount; i++) this.#busy.push(new Map());
  }

  get features(): number {
    return this.#frontEnd?.features ?? 0;
  }

  get queueCount(): number {
    return this.#frontEnd?.queueCount ?? 0;
  }

  /** Ends the connection; requests under way fail. */
  close(): void {
    this.#lost('closed');
    this.#frontEnd?.close();
    this.#frontEnd = null;
  }

  #lost(why: string): void {
    // What has been given back before the end counts.
    if (this.#failure === null) for (const [queue] of this.#busy.entries()) this.#reap(queue);
    this.#failure ??= why;
    for (const busy of this.#busy) {
      for (const slot of busy.values()) slot.reject?.(ioError(E.EIO, new Error(why)));
      busy.clear();
    }
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async #readConfig(): Promise<void> {
    try {
      const config = await this.#frontEnd?.readConfig(CONFIG_BYTES);
      if (config === undefined) return;
      this.config = decodeConfig(config);
      this.#settings.configChanged?.(this.config);
    } catch {
      // Gone again: it is read when the connection is back.
    }
  }

  // ---- requests ----------------------------------------------------------------------------------------------

  /** Reads into `vec`, at most SLOT_DATA_BYTES. */
  read(offset: number, vec: IoVector): Promise<void> {
    const slot = this.#free.pop();
    return slot === undefined
      ? this.#later(() => this.read(offset, vec))
      : this.#start(slot, RequestType.read, offset, vec.bytes, true, vec);
  }

  write(offset: number, vec: IoVector): Promise<void> {
    const slot = this.#free.pop();
    if (slot === undefined) return this.#later(() => this.write(offset, vec));
    copyFromVector(vec, this.#data(slot, vec.bytes));
    return this.#start(slot, RequestType.write, offset, vec.bytes, false, null);
  }

  flush(): Promise<void> {
    const slot = this.#free.pop();
    return slot === undefined
      ? this.#later(() => this.flush())
      : this.#start(slot, RequestType.flush, 0, 0, false, null);
  }

  /** Discards, or writes zeroes to, a range. */
  changeRange(isDiscard: boolean, offset: number, bytes: number, unmap: boolean): Promise<void> {
    const slot = this.#free.pop();
    if (slot === undefined) return this.#later(() => this.changeRange(isDiscard, offset, bytes, unmap));
    const range = this.#data(slot, RANGE_BYTES);
    range.writeBigUInt64LE(BigInt(offset / SECTOR_BYTES), 0);
    range.writeUInt32LE(bytes / SECTOR_BYTES, 8);
    range.writeUInt32LE(unmap ? RANGE_UNMAP : 0, 12);
    const type = isDiscard ? RequestType.discard : RequestType.writeZeroes;
    return this.#start(slot, type, 0, RANGE_BYTES, false, null);
  }

  #data(slot: Slot, bytes: number): Buffer {
    const { buf } = this.#frontEnd!.memory;
    return buf.subarray(slot.dataAt, slot.dataAt + bytes);
  }

  async #later(request: () => Promise<void>): Promise<void> {
    if (this.#failure === null) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (this.#failure !== null) throw ioError(E.EIO, new Error(this.#failure));
    return await request();
  }

  #start(
    slot: Slot,
    type: number,
    offset: number,
    bytes: number,
    deviceWrites: boolean,
    target: IoVector | null,
  ): Promise<void> {
    const frontEnd = this.#frontEnd;
    if (frontEnd === null || this.#failure !== null) {
      this.#free.push(slot);
      return Promise.reject(ioError(E.EIO));
    }
    const { buf } = frontEnd.memory;
    buf.writeUInt32LE(type, slot.headAt);
    buf.writeUInt32LE(0, slot.headAt + 4);
    buf.writeUInt32LE((offset / SECTOR_BYTES) >>> 0, slot.headAt + 8);
    buf.writeUInt32LE(Math.floor(offset / SECTOR_BYTES / 4294967296), slot.headAt + 12);
    buf[slot.headAt + STATUS_AT] = 0xff;
    slot.parts = [
      { address: slot.headAt, length: REQUEST_HEADER_BYTES, write: false },
      ...(bytes > 0 ? [{ address: slot.dataAt, length: bytes, write: deviceWrites }] : []),
      { address: slot.headAt + STATUS_AT, length: 1, write: true },
    ];
    slot.target = target;
    const done = new Promise<void>((resolve, reject) => {
      slot.resolve = resolve;
      slot.reject = reject;
    });
    this.#put(slot);
    deferCall(this.#publish, slot.queue);
    return done;
  }

  #put(slot: Slot): void {
    const head = this.#frontEnd!.queues[slot.queue]!.put(slot.parts);
    this.#busy[slot.queue]!.set(head, slot);
  }

  readonly #publish = (queue: number): void => {
    this.#frontEnd?.queues[queue]?.publish();
  };

  /** The rings are new: everything that was under way goes into them again. */
  #putAgain(): void {
    for (const [queue, busy] of this.#busy.entries()) {
      const slots = [...busy.values()];
      busy.clear();
      for (const slot of slots) this.#put(slot);
      this.#publish(queue);
    }
  }

  #called(queue: number): void {
    const frontEnd = this.#frontEnd;
    const ring = frontEnd?.queues[queue];
    if (frontEnd === null || ring === undefined) return;
    clearEventFd(frontEnd.callFd(queue));
    const problem = this.#reap(queue);
    if (problem !== null) this.#lost(problem);
  }

  /** Finishes what the device has given back; what is wrong with the ring, if anything is. */
  #reap(queue: number): string | null {
    const ring = this.#frontEnd?.queues[queue];
    if (ring === undefined) return null;
    try {
      do {
        ring.enableCalls();
      } while (ring.reap((head) => this.#finish(queue, head)) > 0);
      return null;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  #finish(queue: number, head: number): void {
    const slot = this.#busy[queue]!.get(head);
    if (slot === undefined) return;
    this.#busy[queue]!.delete(head);
    const { buf } = this.#frontEnd!.memory;
    const status = buf[slot.headAt + STATUS_AT];
    const { resolve, reject, target } = slot;
    if (status === RequestStatus.ok) {
      if (target !== null) copyToVector(target, this.#data(slot, target.bytes));
      resolve?.();
    } else {
      reject?.(ioError(status === RequestStatus.unsupported ? E.ENOTSUP : E.EIO));
    }
    this.#free.push(slot);
    this.#waiting.shift()?.();
  }
}
