/**
 * A vhost-user front end whose every message is the test's: memory of several regions, rings where the test wants them,
 * logs and records of its own. src/virtio/vhost-user/front-end.ts is one that behaves.
 */

import { createEventFd, takeSocketDescriptor } from '../../src/aio/descriptors.ts';
import { closeFd } from '../../src/aio/ffi.ts';
import { createMemoryFile, mapSharedMemory, type SharedMemory } from '../../src/aio/shared-memory.ts';
import { connectTo } from '../../src/aio/sockets.ts';
import { RequestType } from '../../src/virtio/block.ts';
import { DriverQueue, queueLayout } from '../../src/virtio/driver-queue.ts';
import { Feature, featureSet } from '../../src/virtio/ring.ts';
import { Channel } from '../../src/virtio/vhost-user/channel.ts';
import {
  decodeU64,
  encodeRegion,
  encodeU64,
  encodeVringState,
  Flag,
  type Message,
  ProtocolFeature,
  Request,
  VRING_FLAGS_AT,
  VRING_LOG,
} from '../../src/virtio/vhost-user/messages.ts';

const PAGE = 4096;
const GiB = 1024 ** 3;

/** Where the front end's own addresses of a region begin, from its guest address on. */
const USER_BASE = 0x7f0000000000;

/** Memory of the guest's. */
export interface Region {
  readonly guestAddress: number;
  readonly bytes: number;
  readonly fd: number;
  readonly shared: SharedMemory;
}

export function createRegion(guestAddress: number, bytes: number): Region {
  const fd = createMemoryFile('guest', bytes);
  return { guestAddress, bytes, fd, shared: mapSharedMemory(fd, 0, bytes) as SharedMemory };
}

export function dropRegion({ fd, shared }: Region): void {
  shared.unmap();
  closeFd(fd);
}

function describeRegion({ guestAddress, bytes }: Region): Buffer {
  return encodeRegion({ guestAddress, bytes, userAddress: USER_BASE + guestAddress, mapOffset: 0 });
}

/** A queue of size `size` whose rings begin at `start` of a region. */
export interface RawQueue {
  readonly region: Region;
  readonly start: number;
  readonly size: number;
  readonly eventIndex: boolean;
  readonly kickFd: number;
  readonly ring: DriverQueue;
}

export function createQueue(region: Region, start: number, size: number, eventIndex = false): RawQueue {
  const kickFd = createEventFd();
  const ring = new DriverQueue(region.shared.window(0), start, size, eventIndex, kickFd);
  return { region, start, size, eventIndex, kickFd, ring };
}

export interface VringOptions {
  readonly base?: number;
  /** Where the log has the used ring. */
  readonly usedLogAddress?: number;
  readonly enabled?: boolean;
}

export class RawFrontEnd {
  readonly #channel: Channel;
  readonly #replies: ((message: Message | null) => void)[] = [];
  ended: string | null | undefined;

  private constructor(fd: number) {
    this.#channel = new Channel(fd, {
      message: (message) => this.#replies.shift()?.(message),
      ended: (why) => {
        this.ended = why;
        for (const done of this.#replies.splice(0)) done(null);
      },
    });
    this.#channel.start();
  }

  /** Connects and negotiates; `logged`: what is written to memory is to be logged from the first request on. */
  static async connect(
    path: string,
    features: readonly number[] = [],
    isLogged = false,
  ): Promise<RawFrontEnd> {
    const socket = await connectTo({ type: 'unix', path }, { pauseOnConnect: true });
    const frontEnd = new RawFrontEnd(takeSocketDescriptor(socket));
    const { replyAck, logShmFd, inflightShmFd, configureMemSlots, status, config } = ProtocolFeature;
    const wanted = featureSet(replyAck, logShmFd, inflightShmFd, configureMemSlots, status, config);
    frontEnd.send(Request.setProtocolFeatures, encodeU64(wanted));
    await frontEnd.setFeatures(features, isLogged);
    return frontEnd;
  }

  close(): void {
    this.#channel.close();
  }

  send(request: number, payload: Buffer, fds: readonly number[] = [], flags = 0): void {
    this.#channel.send(request, flags, payload, fds);
  }

  /** Sends a message that has a reply. */
  async call(
    request: number,
    payload: Buffer = Buffer.alloc(0),
    fds: readonly number[] = [],
    flags = 0,
  ): Promise<Message> {
    const message = await new Promise<Message | null>((resolve) => {
      this.#replies.push(resolve);
      this.send(request, payload, fds, flags);
    });
    if (message === null) throw new Error(`the back end has left: ${this.ended}`);
    return message;
  }

  /** Sends a message that has none and waits until it has been carried out. */
  async tell(request: number, payload: Buffer, fds: readonly number[] = []): Promise<void> {
    const { payload: result } = await this.call(request, payload, fds, Flag.needReply);
    if (decodeU64(result) !== 0) throw new Error(`message ${request} was refused`);
  }

  /** A message and its answer, after which all before it has been dealt with. */
  async roundTrip(): Promise<void> {
    await this.call(Request.getFeatures);
  }

  async setFeatures(features: readonly number[], isLogged: boolean): Promise<void> {
    const all = [
      ...features,
      Feature.version1,
      Feature.protocolFeatures,
      ...(isLogged ? [Feature.logAll] : []),
    ];
    await this.tell(Request.setFeatures, encodeU64(featureSet(...all)));
  }

  async setMemory(...regions: readonly Region[]): Promise<void> {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(regions.length, 0);
    const payload = Buffer.concat([head, ...regions.map(describeRegion)]);
    await this.tell(
      Request.setMemTable,
      payload,
      regions.map(({ fd }) => fd),
    );
  }

  async addRegion(region: Region): Promise<void> {
    await this.tell(Request.addMemReg, Buffer.concat([Buffer.alloc(8), describeRegion(region)]), [region.fd]);
  }

  async removeRegion(region: Region): Promise<void> {
    await this.tell(Request.remMemReg, Buffer.concat([Buffer.alloc(8), describeRegion(region)]));
  }

  /** SET_VRING_ADDR. */
  async setAddresses(queue: RawQueue, usedLogAddress?: number): Promise<void> {
    const { available, used } = queueLayout(queue.size);
    const start = USER_BASE + queue.region.guestAddress + queue.start;
    const payload = Buffer.alloc(40);
    payload.writeUInt32LE(usedLogAddress === undefined ? 0 : VRING_LOG, VRING_FLAGS_AT);
    for (const [i, address] of [start, start + used, start + available, usedLogAddress ?? 0].entries())
      payload.writeBigUInt64LE(BigInt(address), 8 + 8 * i);
    await this.tell(Request.setVringAddr, payload);
  }

  /** Gives the back end queue 0. */
  async start(
    queue: RawQueue,
    { base = 0, usedLogAddress, enabled = true }: VringOptions = {},
  ): Promise<void> {
    await this.tell(Request.setVringNum, encodeVringState(0, queue.size));
    await this.tell(Request.setVringBase, encodeVringState(0, base));
    await this.setAddresses(queue, usedLogAddress);
    await this.tell(Request.setVringKick, encodeU64(0), [queue.kickFd]);
    if (enabled) await this.enable();
  }

  enable(): Promise<void> {
    return this.tell(Request.setVringEnable, encodeVringState(0, 1));
  }

  /** Takes queue 0 back; returns its base. */
  async takeBack(): Promise<number> {
    return (await this.call(Request.getVringBase, encodeVringState(0, 0))).payload.readUInt32LE(4);
  }

  async setLog(log: SharedLog): Promise<void> {
    await this.call(Request.setLogBase, Buffer.concat([encodeU64(log.bytes), encodeU64(0)]), [log.fd]);
  }
}

/** A log of pages written to. */
export class SharedLog {
  readonly fd: number;
  readonly bytes: number;
  readonly #shared: SharedMemory;

  constructor(bytes: number) {
    this.bytes = bytes;
    this.fd = createMemoryFile('log', bytes);
    this.#shared = mapSharedMemory(this.fd, 0, bytes) as SharedMemory;
  }

  /** Pages marked since the last call. */
  take(): number[] {
    const pages: number[] = [];
    const { buf } = this.#shared.window(0);
    const bits = new Uint8Array(buf.buffer, buf.byteOffset, this.bytes);
    for (let i = 0; i < this.bytes; i++) {
      // As a front end does it whose guest runs: nothing marked in between is lost.
      const marks = bits[i] === 0 ? 0 : Atomics.exchange(bits, i, 0);
      for (let bit = 0; bit < 8; bit++) if ((marks & (1 << bit)) !== 0) pages.push(i * 8 + bit);
    }
    return pages;
  }

  close(): void {
    this.#shared.unmap();
    closeFd(this.fd);
  }
}

// ---- requests ------------------------------------------------------------------------------------------------

/** Bytes at a guest address, which all lie in one window of a region. */
export function at(home: Region, address: number): { readonly buf: Buffer; readonly start: number } {
  const offset = address - home.guestAddress;
  return { buf: home.shared.window(Math.floor(offset / GiB)).buf, start: offset % GiB };
}

/** Puts a request into the ring: header and status at `head` and head + 16, data anywhere. */
export function put(
  queue: RawQueue,
  home: Region,
  head: number,
  data: { readonly address: number; readonly length: number },
  { sector = 0, status = head + 16 } = {},
): number {
  const { buf, start } = at(home, head);
  buf.writeUInt32LE(RequestType.read, start);
  buf.writeUInt32LE(0, start + 4);
  buf.writeBigUInt64LE(BigInt(sector), start + 8);
  return queue.ring.put([
    { address: head, length: 16, write: false },
    { ...data, write: true },
    { address: status, length: 1, write: true },
  ]);
}

/** The pages that hold these bytes. */
export function pagesOf(address: number, length: number): number[] {
  const pages: number[] = [];
  for (let page = Math.floor(address / PAGE); page * PAGE < address + length; page++) pages.push(page);
  return pages;
}

/** What the disk holds: no two places hold the same. */
export function diskContent(bytes: number): Buffer {
  const content = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4) content.writeUInt32LE(Math.imul(at + 1, 2654435761) >>> 0, at);
  return content;
}
