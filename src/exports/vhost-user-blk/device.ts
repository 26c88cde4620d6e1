/**
 * What a front end sets up: its memory, its queues with their descriptors, the record of requests under way, and the
 * log of memory written to.
 *
 * Memory and rings are only taken away when no request is under way. A queue is served from the moment its kick is
 * given, while it is enabled. When the front end brings a record of what an earlier session left unfinished, that is
 * done first. Not here: features, configuration, the connection (session.ts).
 */

import { setNonBlocking, signalEventFd } from '../../aio/descriptors.ts';
import { closeFd } from '../../aio/ffi.ts';
import { createWatch, type ReadableWatch } from '../../aio/poller.ts';
import {
  createMemoryFile,
  mapSharedMemory,
  type SharedMemory,
  WINDOW_BYTES,
} from '../../aio/shared-memory.ts';
import { BlockError } from '../../errors/error.ts';
import { BlockDevice, type BlockDeviceSettings } from '../../virtio/block-device.ts';
import { DeviceQueue, type RingAddresses } from '../../virtio/device-queue.ts';
import { DirtyLog } from '../../virtio/dirty-log.ts';
import { GuestMemory } from '../../virtio/guest-memory.ts';
import { InflightRecord, inflightBytes } from '../../virtio/inflight.ts';
import { QUEUE_SIZE_MAX } from '../../virtio/ring.ts';
import {
  decodeInflight,
  decodeRegion,
  decodeU64,
  encodeInflight,
  encodeVringState,
  INFLIGHT_BYTES,
  type Message,
  REGION_BYTES,
  Request,
  TABLE_REGIONS_MAX,
  VRING_FLAGS_AT,
  VRING_LOG,
  VringFd,
} from '../../virtio/vhost-user/messages.ts';

/** Regions that may be added one by one. */
export const MEMORY_SLOTS = 256;

/** A message that cannot be carried out; the connection goes on if the front end wants to be told. */
export class Refused extends Error {}

function haveSamePlace(a: RingAddresses | null, b: RingAddresses): boolean {
  return a !== null && a.descriptors === b.descriptors && a.available === b.available && a.used === b.used;
}

/** Closes a descriptor that another one takes the place of. */
function replaced(old: number, fd: number): number {
  if (old >= 0) closeFd(old);
  return fd;
}

export class VhostDevice {
  readonly disk: BlockDevice;
  readonly queues: readonly DeviceQueue[];
  readonly #memory = new GuestMemory();
  readonly #watches: (ReadableWatch | null)[];
  #inflight: SharedMemory | null = null;
  #inflightQueueSize = 0;
  #logMemory: SharedMemory | null = null;
  #log: DirtyLog | null = null;
  #logEventFd = -1;
  #isLogging = false;
  #closed = false;

  constructor(settings: BlockDeviceSettings, queues: number) {
    this.queues = Array.from({ length: queues }, () => new DeviceQueue(this.#memory));
    this.#watches = this.queues.map(() => null);
    this.disk = new BlockDevice(settings);
  }

  /** Serves the queues outside of what is being done now. */
  serveSoon(): void {
    setImmediate(() => {
      if (!this.#closed) this.disk.serve();
    });
  }

  /** Ends everything; resolves when no request is under way and nothing is mapped any more. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const [index] of this.queues.entries()) this.#stopKicks(index);
    await this.disk.settle();
    for (const queue of this.queues) {
      queue.unmap();
      queue.kickFd = replaced(queue.kickFd, -1);
      queue.callFd = replaced(queue.callFd, -1);
      queue.errFd = replaced(queue.errFd, -1);
    }
    this.#memory.clear();
    this.#dropInflight();
    this.#dropLog();
    if (this.#logEventFd >= 0) closeFd(this.#logEventFd);
  }

  // ---- memory ------------------------------------------------------------------------------------------------

  async setMemTable({ payload, fds }: Message): Promise<null> {
    const count = payload.length >= 8 ? payload.readUInt32LE(0) : 0;
    if (count > TABLE_REGIONS_MAX || payload.length < 8 + count * REGION_BYTES || fds.length !== count)
      throw new BlockError('a malformed memory table');
    await this.#settled();
    for (const queue of this.queues) queue.unmap();
    this.#memory.clear();
    for (let i = 0; i < count; i++) {
      if (!this.#memory.add(decodeRegion(payload, 8 + i * REGION_BYTES), fds[i] as number))
        throw new BlockError('a memory region that cannot be mapped');
    }
    this.#mapRings();
    for (const queue of this.queues)
      if (queue.started && !queue.ready) queue.fail('its rings are not in memory any more');
    return null;
  }

  addRegion({ payload, fds }: Message): null {
    const [fd] = fds;
    if (payload.length < 8 + REGION_BYTES || fd === undefined) throw new BlockError('a malformed region');
    if (this.#memory.regionCount >= MEMORY_SLOTS || !this.#memory.add(decodeRegion(payload, 8), fd))
      throw new Refused('a memory region that cannot be mapped');
    this.#mapRings();
    return null;
  }

  async removeRegion(payload: Buffer): Promise<null> {
    if (payload.length < 8 + REGION_BYTES) throw new BlockError('a malformed region');
    await this.#settled();
    for (const queue of this.queues) queue.unmap();
    const removed = this.#memory.remove(decodeRegion(payload, 8));
    this.#mapRings();
    if (!removed) throw new Refused('no such memory region');
    return null;
  }

  /** Resolves when no request is under way: memory can be taken away within the turn. */
  async #settled(): Promise<void> {
    await this.disk.settle();
    if (this.#closed) throw new BlockError('the connection has ended');
  }

  /**
   * Finds the rings of queues at work again after the memory has changed. Those that are not there are not served: a
   * region that changes its length is taken away and comes again.
   */
  #mapRings(): void {
    for (const queue of this.queues) if (queue.started && !queue.ready) queue.map();
    this.serveSoon();
  }

  // ---- queues ------------------------------------------------------------------------------------------------

  #queue(index: number): DeviceQueue {
    const queue = this.queues[index];
    if (queue === undefined) throw new Refused(`no queue ${index}`);
    return queue;
  }

  /** SET_VRING_NUM, BASE and ENABLE, GET_VRING_BASE. */
  vringState(request: number, payload: Buffer): Buffer | null | Promise<Buffer> {
    if (payload.length < 8) throw new BlockError('a malformed message');
    const index = payload.readUInt32LE(0);
    const value = payload.readUInt32LE(4);
    const queue = this.#queue(index);
    switch (request) {
      case Request.setVringNum:
        if (value === 0 || value > QUEUE_SIZE_MAX || (value & (value - 1)) !== 0)
          throw new Refused(`a queue of size ${value}`);
        if (queue.started) throw new Refused('the size of a queue at work');
        queue.size = value;
        return null;
      case Request.setVringBase:
        if (queue.started) throw new Refused('the base of a queue at work');
        queue.availableIndex = value & 0xffff;
        return null;
      case Request.setVringEnable:
        queue.enabled = value !== 0;
        if (queue.enabled) this.serveSoon();
        return null;
      default:
        return this.#stopQueue(index, queue);
    }
  }

  setVringAddr(payload: Buffer): null {
    if (payload.length < 40) throw new BlockError('a malformed message');
    const queue = this.#queue(payload.readUInt32LE(0));
    const addresses = {
      descriptors: Number(payload.readBigUInt64LE(8)),
      used: Number(payload.readBigUInt64LE(16)),
      available: Number(payload.readBigUInt64LE(24)),
    };
    // A migration that begins or ends tells the addresses of queues at work again, with another flag.
    if (queue.started && !haveSamePlace(queue.addresses, addresses))
      throw new Refused('other addresses of a queue at work');
    queue.addresses = addresses;
    const isLogged = (payload.readUInt32LE(VRING_FLAGS_AT) & VRING_LOG) !== 0;
    queue.usedLogAddress = isLogged ? Number(payload.readBigUInt64LE(32)) : null;
    return null;
  }

  /** SET_VRING_KICK, CALL and ERR. */
  setVringFd({ request, payload, fds }: Message): null {
    const value = decodeU64(payload);
    const index = value & VringFd.index;
    const queue = this.#queue(index);
    const fd = (value & VringFd.none) === 0 ? (fds.shift() ?? -1) : -1;
    if (fd >= 0) setNonBlocking(fd);
    if (request === Request.setVringCall) {
      queue.callFd = replaced(queue.callFd, fd);
      // An earlier session may have ended between giving something back and saying so.
      if (fd >= 0) signalEventFd(fd);
    } else if (request === Request.setVringErr) queue.errFd = replaced(queue.errFd, fd);
    else {
      this.#stopKicks(index);
      queue.kickFd = replaced(queue.kickFd, fd);
      this.#startQueue(index, queue);
    }
    return null;
  }

  /** A queue has all it needs: it is served from its first kick on, or at once when it cannot be kicked. */
  #startQueue(index: number, queue: DeviceQueue): void {
    queue.broken = null;
    if (!queue.map()) throw new BlockError(`the rings of queue ${index} are not in memory`);
    this.#recover(index, queue);
    // Requests may have come before the kick could be heard.
    queue.started = true;
    this.disk.queues.add(queue);
    if (queue.kickFd >= 0) {
      const watch = createWatch(queue.kickFd, () => {
        queue.acknowledgeKick();
        this.disk.serve();
      });
      this.#watches[index] = watch;
      watch.start();
    }
    this.serveSoon();
  }

  /**
   * Finds what an earlier session has begun and not finished. It is carried out when the queue is enabled, not before: the
   * log of a migration comes after the kick, and what is done until then would be missing in it.
   */
  #recover(index: number, queue: DeviceQueue): void {
    // A second kick descriptor for a queue at work: what the record holds is under way here.
    if (queue.pending > 0) return;
    queue.inflight = null;
    queue.forgetUnfinished();
    const record = this.#inflightOf(index);
    if (record === null) return;
    const heads = record.recover(queue.usedIndex);
    queue.inflight = record;
    if (heads !== null) queue.goOnWith(heads);
  }

  #stopKicks(index: number): void {
    this.#watches[index]?.stop();
    this.#watches[index] = null;
    const queue = this.#queue(index);
    queue.started = false;
    this.disk.queues.delete(queue);
  }

  /** GET_VRING_BASE: the queue rests, and the front end learns how far it has come. */
  async #stopQueue(index: number, queue: DeviceQueue): Promise<Buffer> {
    this.#stopKicks(index);
    // The base counts as taken what an earlier session has begun.
    this.disk.startUnfinished(queue);
    await this.disk.settle(queue);
    const base = queue.availableIndex;
    queue.unmap();
    queue.inflight = null;
    queue.kickFd = replaced(queue.kickFd, -1);
    queue.callFd = replaced(queue.callFd, -1);
    return encodeVringState(index, base);
  }

  /** All queues rest, and keep their place in the available ring. */
  async rest(): Promise<void> {
    for (const [index, queue] of this.queues.entries()) {
      if (queue.started || queue.ready || queue.pending > 0) await this.#stopQueue(index, queue);
      queue.enabled = false;
      queue.broken = null;
    }
  }

  /** All queues rest and are as at the start. */
  async reset(): Promise<void> {
    await this.rest();
    for (const queue of this.queues) queue.availableIndex = 0;
  }

  // ---- the log of a migration --------------------------------------------------------------------------------

  /** SET_LOG_BASE. */
  setLogBase({ payload, fds }: Message): null {
    const [fd] = fds;
    if (payload.length < 16 || fd === undefined) throw new BlockError('a malformed message');
    const bytes = Number(payload.readBigUInt64LE(0));
    const memory =
      bytes > WINDOW_BYTES ? null : mapSharedMemory(fd, Number(payload.readBigUInt64LE(8)), bytes);
    if (memory === null) throw new BlockError('a log that cannot be mapped');
    this.#dropLog();
    this.#logMemory = memory;
    this.#log = new DirtyLog(memory.window(0), 0, bytes);
    this.#updateLogs();
    return null;
  }

  /** SET_LOG_FD: where the front end hears of changes of the log. */
  setLogFd({ fds }: Message): null {
    const fd = fds.shift() ?? -1;
    if (fd >= 0) setNonBlocking(fd);
    this.#logEventFd = replaced(this.#logEventFd, fd);
    this.#updateLogs();
    return null;
  }

  /** Whether what is written to guest memory is to be logged. */
  setLogging(isLogging: boolean): void {
    this.#isLogging = isLogging;
    this.#updateLogs();
  }

  #updateLogs(): void {
    if (this.#log !== null) this.#log.eventFd = this.#logEventFd;
    for (const queue of this.queues) queue.dirtyLog = this.#isLogging ? this.#log : null;
  }

  #dropLog(): void {
    for (const queue of this.queues) queue.dirtyLog = null;
    this.#log = null;
    this.#logMemory?.unmap();
    this.#logMemory = null;
  }

  // ---- requests under way ------------------------------------------------------------------------------------

  /** GET_INFLIGHT_FD: the payload of the reply and the descriptor that goes with it, which is the caller's. */
  createInflight({ payload }: Message): { readonly reply: Buffer; readonly fd: number } {
    if (payload.length < INFLIGHT_BYTES) throw new BlockError('a malformed message');
    const { queues, queueSize } = decodeInflight(payload);
    if (queues === 0 || queues > this.queues.length || queueSize === 0 || queueSize > QUEUE_SIZE_MAX)
      throw new BlockError('a record of requests for queues that there are not');
    const mapBytes = queues * inflightBytes(queueSize);
    if (mapBytes > WINDOW_BYTES) throw new BlockError('a record of requests that is too long');
    const fd = createMemoryFile('vhost-inflight', mapBytes);
    if (fd < 0) throw new BlockError('no memory for the record of requests');
    try {
      this.#keepInflight(fd, 0, mapBytes, queueSize);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
    const reply = encodeInflight({ mapBytes, mapOffset: 0, queues, queueSize });
    return { reply, fd };
  }

  setInflight({ payload, fds }: Message): null {
    const [fd] = fds;
    if (payload.length < INFLIGHT_BYTES || fd === undefined) throw new BlockError('a malformed message');
    const { mapBytes, mapOffset, queues, queueSize } = decodeInflight(payload);
    if (
      queueSize === 0 ||
      queueSize > QUEUE_SIZE_MAX ||
      mapBytes < queues * inflightBytes(queueSize) ||
      mapBytes > WINDOW_BYTES
    )
      throw new BlockError('a record of requests of an odd size');
    this.#keepInflight(fd, mapOffset, mapBytes, queueSize);
    return null;
  }

  #keepInflight(fd: number, offset: number, bytes: number, queueSize: number): void {
    if (this.queues.some((queue) => queue.started)) throw new BlockError('a record for queues at work');
    this.#dropInflight();
    this.#inflight = mapSharedMemory(fd, offset, bytes);
    if (this.#inflight === null) throw new BlockError('a record of requests that cannot be mapped');
    this.#inflightQueueSize = queueSize;
  }

  #inflightOf(index: number): InflightRecord | null {
    const queueSize = this.#inflightQueueSize;
    const bytes = inflightBytes(queueSize);
    const { size } = this.#queue(index);
    if (this.#inflight === null || size > queueSize || (index + 1) * bytes > this.#inflight.bytes)
      return null;
    return new InflightRecord(
      { mem: this.#inflight.window(0), start: index * bytes, length: bytes },
      queueSize,
    );
  }

  #dropInflight(): void {
    for (const queue of this.queues) queue.inflight = null;
    this.#inflight?.unmap();
    this.#inflight = null;
  }
}
