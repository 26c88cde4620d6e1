/**
 * A vhost-user front end: the connection to a back end, as a virtual machine monitor has it.
 *
 * Here: negotiation, memory, queues, and coming back after the connection was lost. Not here: block requests
 * (block-driver.ts), what is in the rings (driver-queue.ts).
 *
 * The memory is one file: the rings of all queues, then whatever the user of this puts there. Guest addresses are
 * offsets into it. When the connection is lost, requests stay in the rings. A back end that keeps the record of requests
 * under way goes on with them; others get rings made anew, and the user puts its requests into them once more.
 */

import {
  createEventFd,
  createSocketPair,
  setNonBlocking,
  takeSocketDescriptor,
} from '../../aio/descriptors.ts';
import { closeFd } from '../../aio/ffi.ts';
import type { IoMemory } from '../../aio/memory.ts';
import { createWatch, type ReadableWatch } from '../../aio/poller.ts';
import { createMemoryFile, mapSharedMemory, type SharedMemory } from '../../aio/shared-memory.ts';
import { connectTo } from '../../aio/sockets.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { DriverQueue, queueLayout } from '../driver-queue.ts';
import { Feature, featureSet, hasFeature } from '../ring.ts';
import { Channel } from './channel.ts';
import {
  BackendRequest,
  CONFIG_HEAD_BYTES,
  decodeInflight,
  decodeU64,
  encodeInflight,
  encodeRegion,
  encodeU64,
  encodeVringState,
  Flag,
  type InflightInfo,
  type Message,
  ProtocolFeature,
  Request,
  VRING_FLAGS_AT,
  VRING_LOG,
} from './messages.ts';

/** Where the front end's own addresses begin: not the guest's, so that nobody can mix them up unnoticed. */
const USER_BASE = 0x7f0000000000;
const RECONNECT_MS = 100;
/** How long the back end may take to set everything up: one that serves somebody else does not answer. */
const SET_UP_MS = 5000;

export interface FrontEndSettings {
  readonly path: string;
  /** At most so many queues; the back end may have fewer. */
  readonly queues: number;
  readonly queueSize: number;
  /** Bytes of memory behind the rings. */
  readonly dataBytes: number;
  /** Features wanted besides version 1. */
  readonly features: readonly number[];
  readonly protocolFeatures: readonly number[];
  /** Comes back by itself when the connection is lost. */
  readonly reconnect: boolean;
  /** A queue's device has given something back. */
  readonly called: (queue: number) => void;
  /** The rings are new: nothing is in them. */
  readonly ringsRenewed: () => void;
  /** The connection is there again, or lost for good. */
  readonly connected: () => void;
  readonly lost: (why: string) => void;
  readonly configChanged: () => void;
}

/** The features a driver of disks wants. */
export const DRIVER_FEATURES: readonly number[] = [
  ...[Feature.blkSegMax, Feature.blkReadOnly, Feature.blkBlockSize, Feature.blkFlush, Feature.blkMultiQueue],
  ...[Feature.blkDiscard, Feature.blkWriteZeroes, Feature.eventIndex, Feature.indirectDescriptors],
];

export const DRIVER_PROTOCOL_FEATURES: readonly number[] = [
  ...[ProtocolFeature.multiQueue, ProtocolFeature.replyAck, ProtocolFeature.config],
  ...[ProtocolFeature.backendRequest, ProtocolFeature.inflightShmFd],
];

export class FrontEnd {
  readonly settings: FrontEndSettings;
  features = 0;
  protocolFeatures = 0;
  /** As many as both sides have. */
  queueCount = 0;
  queues: DriverQueue[] = [];
  readonly #memoryFd: number;
  readonly #shared: SharedMemory;
  #channel: Channel | null = null;
  #backendChannel: Channel | null = null;
  readonly #replies: { readonly request: number; readonly done: (message: Message | null) => void }[] = [];
  readonly #kickFds: number[] = [];
  readonly #callFds: number[] = [];
  readonly #watches: ReadableWatch[] = [];
  #inflight: { readonly fd: number; readonly info: InflightInfo } | null = null;
  /** Connected for the first time. */
  #isOpen = false;
  #comingBack = false;
  #closed = false;

  /** Use open(). */
  constructor(settings: FrontEndSettings, memoryFd: number, shared: SharedMemory) {
    this.settings = settings;
    this.#memoryFd = memoryFd;
    this.#shared = shared;
  }

  /** Connects and sets everything up; throws BlockError. */
  static async open(settings: FrontEndSettings): Promise<FrontEnd> {
    const bytes = queueLayout(settings.queueSize).bytes * settings.queues + settings.dataBytes;
    const fd = createMemoryFile('vhost-user-memory', bytes);
    const shared = fd < 0 ? null : mapSharedMemory(fd, 0, bytes);
    if (shared === null) {
      if (fd >= 0) closeFd(fd);
      throw new BlockError('Cannot get memory for a vhost-user device', { errno: E.ENOMEM });
    }
    const frontEnd = new FrontEnd(settings, fd, shared);
    try {
      await frontEnd.#connect();
      frontEnd.#isOpen = true;
    } catch (error) {
      frontEnd.close();
      throw error;
    }
    return frontEnd;
  }

  /** All of the memory; guest address n is at its position n. */
  get memory(): IoMemory {
    return this.#shared.window(0);
  }

  /** Guest address of the memory behind the rings. */
  get dataAddress(): number {
    return queueLayout(this.settings.queueSize).bytes * this.settings.queues;
  }

  get connected(): boolean {
    return this.#channel !== null;
  }

  /** Ends everything; what is in the rings stays undone. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const watch of this.#watches) watch.stop();
    this.#channel?.close();
    this.#backendChannel?.close();
    for (const fd of [...this.#kickFds, ...this.#callFds, this.#memoryFd]) closeFd(fd);
    if (this.#inflight !== null) closeFd(this.#inflight.fd);
    this.queues = [];
    this.#shared.unmap();
  }

  // ---- messages ----------------------------------------------------------------------------------------------

  #handle(message: Message): void {
    const waiting = this.#replies.shift();
    if (waiting === undefined || waiting.request !== message.request || (message.flags & Flag.reply) === 0)
      throw new Error(`unexpected message ${message.request}`);
    // A descriptor is the caller's, who runs after this message is over. Nothing else has any, as the protocol goes.
    const fds = message.request === Request.getInflightFd ? message.fds.splice(0, 1) : [];
    waiting.done({ ...message, fds });
  }

  /** Sends a message that has a reply. */
  async call(request: number, payload: Buffer, fds: readonly number[] = []): Promise<Message> {
    const channel = this.#channel;
    if (channel === null) throw new BlockError('no connection', { errno: E.ENOTCONN });
    const message = await new Promise<Message | null>((done) => {
      this.#replies.push({ request, done });
      channel.send(request, 0, payload, fds);
    });
    if (message === null) throw lostError();
    return message;
  }

  /** Sends a message that has none, and waits until it has been carried out where the back end tells. */
  async tell(request: number, payload: Buffer, fds: readonly number[] = []): Promise<void> {
    if (!hasFeature(this.protocolFeatures, ProtocolFeature.replyAck)) {
      this.#channel?.send(request, 0, payload, fds);
      return;
    }
    const channel = this.#channel;
    if (channel === null) throw new BlockError('no connection', { errno: E.ENOTCONN });
    const message = await new Promise<Message | null>((done) => {
      this.#replies.push({ request, done });
      channel.send(request, Flag.needReply, payload, fds);
    });
    if (message === null) throw lostError();
    if (decodeU64(message.payload) !== 0)
      throw new BlockError(`the back end refused message ${request}`, { errno: E.EINVAL });
  }

  async #ask(request: number): Promise<number> {
    return decodeU64((await this.call(request, Buffer.alloc(0))).payload);
  }

  /** Reads the configuration space. */
  async readConfig(length: number): Promise<Buffer> {
    const payload = Buffer.alloc(CONFIG_HEAD_BYTES + length);
    payload.writeUInt32LE(length, 4);
    const reply = (await this.call(Request.getConfig, payload)).payload;
    if (reply.length !== payload.length) throw new BlockError('the back end has no configuration');
    return reply.subarray(CONFIG_HEAD_BYTES);
  }

  // ---- connection --------------------------------------------------------------------------------------------

  async #connect(): Promise<void> {
    const socket = await connectTo({ type: 'unix', path: this.settings.path }, { pauseOnConnect: true });
    const fd = takeSocketDescriptor(socket);
    if (this.#closed) {
      closeFd(fd);
      throw new BlockError('closed', { errno: E.ESHUTDOWN });
    }
    const channel = new Channel(fd, {
      message: (message) => this.#handle(message),
      ended: (why) => this.#lost(channel, why ?? 'the back end has left'),
    });
    this.#channel = channel;
    channel.start();
    const timer = setTimeout(() => channel.close(), SET_UP_MS);
    try {
      await this.#negotiate();
      await this.#shareMemory();
      await this.#setUpQueues();
    } finally {
      clearTimeout(timer);
    }
  }

  #lost(channel: Channel, why: string): void {
    for (const { done } of this.#replies.splice(0)) done(null);
    if (this.#channel !== channel) return;
    this.#channel = null;
    this.#backendChannel?.close();
    this.#backendChannel = null;
    if (this.#closed) return;
    if (!this.settings.reconnect || !this.#isOpen) this.settings.lost(why);
    else if (!this.#comingBack) void this.#comeBack();
  }

  /** Tries to connect until it has worked; one at a time. */
  async #comeBack(): Promise<void> {
    this.#comingBack = true;
    while (!this.#closed) {
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
      try {
        await this.#connect();
        break;
      } catch {
        // Not there yet, or gone again.
        this.#channel?.close();
      }
    }
    this.#comingBack = false;
    // It may have been lost again in the meantime.
    if (this.#closed) return;
    if (this.#channel === null) void this.#comeBack();
    else this.settings.connected();
  }

  async #negotiate(): Promise<void> {
    const wanted = featureSet(...this.settings.features, Feature.protocolFeatures, Feature.version1);
    const offered = await this.#ask(Request.getFeatures);
    if (!hasFeature(offered, Feature.version1) || !hasFeature(offered, Feature.protocolFeatures))
      throw new BlockError('the back end is too old', { errno: E.EPROTO });
    this.features = common(wanted, offered);
    const offeredProtocol = await this.#ask(Request.getProtocolFeatures);
    this.protocolFeatures = 0;
    const protocolFeatures = common(featureSet(...this.settings.protocolFeatures), offeredProtocol);
    await this.tell(Request.setProtocolFeatures, encodeU64(protocolFeatures));
    this.protocolFeatures = protocolFeatures;
    await this.tell(Request.setOwner, Buffer.alloc(0));
    const most = hasFeature(protocolFeatures, ProtocolFeature.multiQueue)
      ? await this.#ask(Request.getQueueNum)
      : 1;
    this.queueCount = Math.min(this.settings.queues, most);
    await this.tell(Request.setFeatures, encodeU64(this.features));
    if (hasFeature(protocolFeatures, ProtocolFeature.backendRequest)) await this.#openBackendChannel();
  }

  async #openBackendChannel(): Promise<void> {
    const pair = createSocketPair();
    if (pair === null) return;
    const [ours, theirs] = pair;
    setNonBlocking(ours);
    this.#backendChannel = new Channel(ours, {
      message: ({ request }) => {
        if (request === BackendRequest.configChange) this.settings.configChanged();
      },
      ended: () => undefined,
    });
    this.#backendChannel.start();
    try {
      await this.tell(Request.setBackendReqFd, Buffer.alloc(0), [theirs]);
    } finally {
      closeFd(theirs);
    }
  }

  async #shareMemory(): Promise<void> {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(1, 0);
    const region = encodeRegion({
      guestAddress: 0,
      bytes: this.#shared.bytes,
      userAddress: USER_BASE,
      mapOffset: 0,
    });
    await this.tell(Request.setMemTable, Buffer.concat([head, region]), [this.#memoryFd]);
  }

  /** Gives the back end the queues; says so when their rings are new. */
  async #setUpQueues(): Promise<void> {
    const { queueSize, ringsRenewed } = this.settings;
    const tracks = hasFeature(this.protocolFeatures, ProtocolFeature.inflightShmFd);
    const goesOn = tracks && this.#inflight !== null && this.queues.length === this.queueCount;
    if (tracks) await this.#shareInflight(goesOn);
    if (!goesOn) this.#renewQueues();
    for (let index = 0; index < this.queueCount; index++) {
      await this.tell(Request.setVringNum, encodeVringState(index, queueSize));
      const base = this.queues[index]!.usedIndex;
      await this.tell(Request.setVringBase, encodeVringState(index, base));
      await this.tell(Request.setVringAddr, this.vringAddresses(index));
      await this.tell(Request.setVringCall, encodeU64(index), [this.#callFds[index]!]);
      await this.tell(Request.setVringKick, encodeU64(index), [this.#kickFds[index]!]);
      await this.tell(Request.setVringEnable, encodeVringState(index, 1));
    }
    if (!goesOn) ringsRenewed();
    for (const [index, queue] of this.queues.entries()) {
      queue.kick();
      // What was given back before the connection was lost may not have been announced.
      if (goesOn) this.settings.called(index);
    }
  }

  async #shareInflight(goesOn: boolean): Promise<void> {
    const { queueSize } = this.settings;
    if (goesOn && this.#inflight !== null) {
      await this.tell(Request.setInflightFd, encodeInflight(this.#inflight.info), [this.#inflight.fd]);
      return;
    }
    if (this.#inflight !== null) closeFd(this.#inflight.fd);
    this.#inflight = null;
    const wanted = { mapBytes: 0, mapOffset: 0, queues: this.queueCount, queueSize };
    const { payload, fds } = await this.call(Request.getInflightFd, encodeInflight(wanted));
    const fd = fds.shift();
    if (fd === undefined) throw new BlockError('the back end sent no record of requests');
    this.#inflight = { fd, info: { ...decodeInflight(payload), queues: this.queueCount, queueSize } };
  }

  #renewQueues(): void {
    const { queueSize } = this.settings;
    const { bytes } = queueLayout(queueSize);
    this.memory.buf.fill(0, 0, bytes * this.queueCount);
    while (this.#kickFds.length < this.queueCount) {
      const index = this.#kickFds.length;
      this.#kickFds.push(createEventFd());
      const callFd = createEventFd();
      this.#callFds.push(callFd);
      const watch = createWatch(callFd, () => this.settings.called(index));
      this.#watches.push(watch);
      watch.start();
    }
    const eventIndex = hasFeature(this.features, Feature.eventIndex);
    this.queues = this.#kickFds.map(
      (kickFd, index) => new DriverQueue(this.memory, index * bytes, queueSize, eventIndex, kickFd),
    );
  }

  /** The descriptor whose events are `called`. */
  callFd(index: number): number {
    return this.#callFds[index]!;
  }

  /** The payload of SET_VRING_ADDR. `usedLogAddress`: where the log has the used ring; null: it is not logged. */
  vringAddresses(index: number, usedLogAddress: number | null = null): Buffer {
    const { available, used, bytes } = queueLayout(this.settings.queueSize);
    const start = USER_BASE + index * bytes;
    const payload = Buffer.alloc(40);
    payload.writeUInt32LE(index, 0);
    payload.writeUInt32LE(usedLogAddress === null ? 0 : VRING_LOG, VRING_FLAGS_AT);
    payload.writeBigUInt64LE(BigInt(start), 8);
    payload.writeBigUInt64LE(BigInt(start + used), 16);
    payload.writeBigUInt64LE(BigInt(start + available), 24);
    payload.writeBigUInt64LE(BigInt(usedLogAddress ?? 0), 32);
    return payload;
  }
}

function lostError(): BlockError {
  return new BlockError('The vhost-user back end has left or does not answer', { errno: E.ECONNRESET });
}

/** Features of both sets. */
function common(a: number, b: number): number {
  return Number(BigInt(a) & BigInt(b));
}
