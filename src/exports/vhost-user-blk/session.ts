/**
 * A front end's connection to a vhost-user-blk export: its messages, and the device they set up.
 *
 * Here: what each message does, in the order of the protocol's table, and the end of a session. Not here: the bytes
 * of messages (src/virtio/vhost-user), rings and requests (src/virtio), the socket listened on (export.ts).
 */

import { setNonBlocking } from '../../aio/descriptors.ts';
import { closeFd } from '../../aio/ffi.ts';
import { BlockError } from '../../errors/error.ts';
import { CONFIG_WRITEBACK_AT, encodeConfig } from '../../virtio/block.ts';
import type { BlockDeviceSettings } from '../../virtio/block-device.ts';
import { Feature, featureSet, hasFeature } from '../../virtio/ring.ts';
import { Channel } from '../../virtio/vhost-user/channel.ts';
import {
  BackendRequest,
  CONFIG_HEAD_BYTES,
  decodeU64,
  encodeU64,
  Flag,
  type Message,
  ProtocolFeature,
  Request,
} from '../../virtio/vhost-user/messages.ts';
import { MEMORY_SLOTS, Refused, VhostDevice } from './device.ts';

/** Longest piece of configuration space; what is behind its end reads as zeroes. */
const CONFIG_BYTES_MAX = 256;

const PROTOCOL_FEATURES = featureSet(...Object.values(ProtocolFeature));

export interface SessionSettings extends BlockDeviceSettings {
  readonly queues: number;
  readonly writethrough: boolean;
}

/** A reply's payload; null: none but the acknowledgement; 'sent': it has been sent. */
type Reply = Buffer | null | 'sent';

export class VhostUserSession {
  readonly #settings: SessionSettings;
  readonly #onEnd: () => void;
  readonly #device: VhostDevice;
  readonly #channel: Channel;
  /** Where this side sends requests of its own. */
  #backendChannel: Channel | null = null;
  #protocolFeatures = 0;
  #status = 0;
  #writeback: boolean;
  #ended: Promise<void> | null = null;
  /** No more requests are taken. */
  #stopping = false;

  /** Takes over the connection `fd`. `onEnd` is called when it has ended and nothing of it is left. */
  constructor(fd: number, settings: SessionSettings, paused: boolean, onEnd: () => void) {
    this.#settings = settings;
    this.#onEnd = onEnd;
    this.#device = new VhostDevice(settings, settings.queues);
    this.#writeback = !settings.writethrough;
    this.#device.disk.writeback = this.#writeback;
    this.#device.disk.paused = paused;
    this.#channel = new Channel(fd, {
      message: (message) => this.#handle(message),
      ended: (why) => {
        if (why !== null) settings.log(`vhost-user connection ended: ${why}`);
        void this.#end();
      },
    });
    this.#channel.start();
  }

  setPaused(paused: boolean): void {
    if (this.#stopping) return;
    this.#device.disk.paused = paused;
    if (!paused) this.#device.serveSoon();
  }

  /** The disk has another size: the front end is told to read the configuration again. */
  resized(): void {
    this.#backendChannel?.send(BackendRequest.configChange, 0, Buffer.alloc(0));
  }

  /**
   * Ends the connection; resolves when nothing of it is left. What the front end finds in its rings then is all there is:
   * one without a record of requests under way goes on from there, with this device's place taken by another.
   */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#device.disk.paused = true;
    await this.#device.disk.settle();
    this.#channel.close();
    await this.#ended;
  }

  #end(): Promise<void> {
    this.#ended ??= this.#cleanUp();
    return this.#ended;
  }

  async #cleanUp(): Promise<void> {
    await this.#device.close();
    this.#backendChannel?.close();
    this.#onEnd();
  }

  // ---- messages ----------------------------------------------------------------------------------------------

  /** Carries out a message and answers it. Throws when the connection cannot go on. */
  #handle(message: Message): void | Promise<void> {
    let result: Reply | Promise<Reply>;
    try {
      result = this.#carryOut(message);
    } catch (error) {
      this.#acknowledge(message, error);
      return;
    }
    if (result instanceof Promise) {
      return result.then(
        (reply) => this.#answer(message, reply),
        (error: unknown) => this.#acknowledge(message, error),
      );
    }
    this.#answer(message, result);
  }

  #answer(message: Message, reply: Reply): void {
    if (reply === 'sent') return;
    if (reply !== null) this.#channel.send(message.request, Flag.reply, reply);
    else this.#acknowledge(message, null);
  }

  /** Answers a message that has no reply of its own, if the front end wants that; else a refusal is the end. */
  #acknowledge({ request, flags }: Message, error: unknown): void {
    const wantsReply =
      (flags & Flag.needReply) !== 0 && hasFeature(this.#protocolFeatures, ProtocolFeature.replyAck);
    if (error !== null && !(wantsReply && error instanceof Refused)) throw error;
    if (wantsReply) this.#channel.send(request, Flag.reply, encodeU64(error === null ? 0 : 1));
  }

  #carryOut(message: Message): Reply | Promise<Reply> {
    const { request, payload } = message;
    switch (request) {
      case Request.getFeatures:
        return encodeU64(this.#offered);
      case Request.setFeatures:
        return this.#setFeatures(decodeU64(payload));
      case Request.setOwner:
        return null;
      case Request.getProtocolFeatures:
        return encodeU64(PROTOCOL_FEATURES);
      case Request.setProtocolFeatures:
        this.#protocolFeatures = decodeU64(payload);
        return null;
      case Request.getQueueNum:
        return encodeU64(this.#settings.queues);
      case Request.getMaxMemSlots:
        return encodeU64(MEMORY_SLOTS);
      case Request.setMemTable:
        return this.#device.setMemTable(message);
      case Request.addMemReg:
        return this.#device.addRegion(message);
      case Request.remMemReg:
        return this.#device.removeRegion(payload);
      case Request.setVringNum:
      case Request.setVringBase:
      case Request.setVringEnable:
      case Request.getVringBase:
        return this.#device.vringState(request, payload);
      case Request.setVringAddr:
        return this.#device.setVringAddr(payload);
      case Request.setVringKick:
      case Request.setVringCall:
      case Request.setVringErr:
        return this.#device.setVringFd(message);
      case Request.setLogBase:
        this.#device.setLogBase(message);
        // Has a reply whether it was asked for or not.
        return encodeU64(0);
      case Request.setLogFd:
        return this.#device.setLogFd(message);
      case Request.setBackendReqFd:
        return this.#setBackendFd(message);
      case Request.getConfig:
        return this.#getConfig(payload);
      case Request.setConfig:
        return this.#setConfig(payload);
      case Request.getInflightFd:
        return this.#sendInflight(message);
      case Request.setInflightFd:
        return this.#device.setInflight(message);
      case Request.resetOwner:
      case Request.resetDevice:
        return this.#reset();
      case Request.setStatus:
        return this.#setStatus(decodeU64(payload) % 256);
      case Request.getStatus:
        return encodeU64(this.#status);
      default:
        throw new Refused(`unknown message ${request}`);
    }
  }

  // ---- features ----------------------------------------------------------------------------------------------

  get #offered(): number {
    const { writable } = this.#settings;
    return featureSet(
      Feature.blkSegMax,
      Feature.blkBlockSize,
      Feature.blkTopology,
      Feature.blkFlush,
      Feature.blkConfigWce,
      Feature.blkMultiQueue,
      ...(writable ? [Feature.blkDiscard, Feature.blkWriteZeroes] : [Feature.blkReadOnly]),
      Feature.logAll,
      Feature.indirectDescriptors,
      Feature.eventIndex,
      Feature.protocolFeatures,
      Feature.version1,
    );
  }

  #setFeatures(features: number): null {
    this.#device.setLogging(hasFeature(features, Feature.logAll));
    for (const queue of this.#device.queues) {
      queue.indirect = hasFeature(features, Feature.indirectDescriptors);
      queue.eventIndex = hasFeature(features, Feature.eventIndex);
      // Without protocol features there is no message that enables a queue.
      if (!hasFeature(features, Feature.protocolFeatures)) queue.enabled = true;
    }
    return null;
  }

  // ---- configuration -----------------------------------------------------------------------------------------

  #setBackendFd({ fds }: Message): null {
    const fd = fds.shift();
    if (fd === undefined) throw new BlockError('a channel without descriptor');
    this.#backendChannel?.close();
    // What comes back are acknowledgements nobody asked for.
    const channel = new Channel(fd, { message: () => undefined, ended: () => undefined });
    // What cannot be watched is closed with the rest.
    this.#backendChannel = channel;
    setNonBlocking(fd);
    channel.start();
    return null;
  }

  #config(): Buffer {
    const { sizeBytes, blockBytes, queues } = this.#settings;
    return encodeConfig({ sizeBytes: sizeBytes(), blockBytes, queues, writeback: this.#writeback });
  }

  #getConfig(payload: Buffer): Buffer {
    if (payload.length < CONFIG_HEAD_BYTES) throw new BlockError('a malformed message');
    const offset = payload.readUInt32LE(0);
    const length = payload.readUInt32LE(4);
    // No payload: the front end's request cannot be met.
    if (offset + length > CONFIG_BYTES_MAX || length === 0) return Buffer.alloc(0);
    const reply = Buffer.alloc(CONFIG_HEAD_BYTES + length);
    payload.copy(reply, 0, 0, CONFIG_HEAD_BYTES);
    this.#config().copy(reply, CONFIG_HEAD_BYTES, offset, offset + length);
    return reply;
  }

  /** The driver chooses between the write cache and writing through. */
  #setConfig(payload: Buffer): null {
    const isWriteback =
      payload.length === CONFIG_HEAD_BYTES + 1 &&
      payload.readUInt32LE(0) === CONFIG_WRITEBACK_AT &&
      payload.readUInt32LE(4) === 1;
    if (!isWriteback) throw new Refused('a field of the configuration that is not to be written');
    this.#writeback = payload[CONFIG_HEAD_BYTES] !== 0;
    this.#device.disk.writeback = this.#writeback && !this.#settings.writethrough;
    return null;
  }

  async #reset(): Promise<null> {
    await this.#device.reset();
    this.#writeback = !this.#settings.writethrough;
    this.#device.disk.writeback = this.#writeback;
    return null;
  }

  /**
   * Status 0 is a driver's reset, and what QEMU says before it asks for the rings' bases when a machine is paused or
   * moves: the rings rest, and how far they have come is still to be had. A driver that comes anew is given a base, and
   * reads of the write cache what is true here.
   */
  async #setStatus(status: number): Promise<null> {
    this.#status = status;
    if (status === 0) await this.#device.rest();
    return null;
  }

  #sendInflight(message: Message): Reply {
    const { reply, fd } = this.#device.createInflight(message);
    this.#channel.send(message.request, Flag.reply, reply, [fd]);
    closeFd(fd);
    return 'sent';
  }
}
