/**
 * vhost-user messages: numbers, flags and payloads. Integers are in the machine's order.
 *
 * | header 12 bytes | request u32, flags u32 (version 1, reply, need reply), payload bytes u32 |
 * Source of the facts: QEMU documentation, "Vhost-user Protocol".
 */

import type { RegionInfo } from '../guest-memory.ts';

export const HEADER_BYTES = 12;
/** Longer payloads are refused: the longest known is a memory table. */
export const PAYLOAD_BYTES_MAX = 4096;
/** Descriptors a message may carry. */
export const MESSAGE_FDS_MAX = 8;
/** Regions of a memory table. */
export const TABLE_REGIONS_MAX = 8;
export const REGION_BYTES = 32;

export const VERSION = 1;
export const Flag = { version: 3, reply: 4, needReply: 8 } as const;

export const Request = {
  getFeatures: 1,
  setFeatures: 2,
  setOwner: 3,
  resetOwner: 4,
  setMemTable: 5,
  setLogBase: 6,
  setLogFd: 7,
  setVringNum: 8,
  setVringAddr: 9,
  setVringBase: 10,
  getVringBase: 11,
  setVringKick: 12,
  setVringCall: 13,
  setVringErr: 14,
  getProtocolFeatures: 15,
  setProtocolFeatures: 16,
  getQueueNum: 17,
  setVringEnable: 18,
  setBackendReqFd: 21,
  getConfig: 24,
  setConfig: 25,
  getInflightFd: 31,
  setInflightFd: 32,
  resetDevice: 34,
  getMaxMemSlots: 36,
  addMemReg: 37,
  remMemReg: 38,
  setStatus: 39,
  getStatus: 40,
} as const;

/** Requests of the back end. */
export const BackendRequest = { configChange: 2 } as const;

export const ProtocolFeature = {
  multiQueue: 0,
  logShmFd: 1,
  replyAck: 3,
  backendRequest: 5,
  config: 9,
  backendSendFd: 10,
  inflightShmFd: 12,
  resetDevice: 13,
  configureMemSlots: 15,
  status: 16,
} as const;

/** In the u64 of SET_VRING_KICK, CALL and ERR: the queue's number, and whether there is no descriptor. */
export const VringFd = { index: 0xff, none: 0x100 } as const;

/** Offset of SET_VRING_ADDR's flags, and the one there is: writes to the used ring are to be logged. */
export const VRING_FLAGS_AT = 4;
export const VRING_LOG = 1;

/** A message with the descriptors that came with it. */
export interface Message {
  readonly request: number;
  readonly flags: number;
  readonly payload: Buffer;
  /** Theirs who has the message; what is left of them is closed by it. */
  readonly fds: number[];
}

/** Header and payload. */
export function encodeMessage(request: number, flags: number, payload: Buffer): Buffer {
  const message = Buffer.allocUnsafeSlow(HEADER_BYTES + payload.length);
  message.writeUInt32LE(request, 0);
  message.writeUInt32LE(VERSION | flags, 4);
  message.writeUInt32LE(payload.length, 8);
  message.set(payload, HEADER_BYTES);
  return message;
}

export function encodeU64(value: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64LE(BigInt(value));
  return payload;
}

/** The u64 of a message; throws when it is too short. Values that are not exact as a number are of no meaning. */
export function decodeU64(payload: Buffer): number {
  if (payload.length < 8) throw new Error('a malformed message');
  return Number(payload.readBigUInt64LE(0));
}

/** A memory region at `at` of a payload: guest address, length, address of the front end's, offset in its file. */
export function decodeRegion(payload: Buffer, at: number): RegionInfo {
  const field = (index: number): number => Number(payload.readBigUInt64LE(at + 8 * index));
  return { guestAddress: field(0), bytes: field(1), userAddress: field(2), mapOffset: field(3) };
}

export function encodeRegion({ guestAddress, bytes, userAddress, mapOffset }: RegionInfo): Buffer {
  return Buffer.concat([guestAddress, bytes, userAddress, mapOffset].map(encodeU64));
}

/** A queue's number and a value (SET_VRING_NUM and the like). */
export function encodeVringState(index: number, value: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeUInt32LE(index, 0);
  payload.writeUInt32LE(value, 4);
  return payload;
}

/** A piece of configuration space: head 12 bytes (offset u32, length u32, flags u32), bytes. */
export const CONFIG_HEAD_BYTES = 12;

/** GET_INFLIGHT_FD and SET_INFLIGHT_FD. */
export interface InflightInfo {
  readonly mapBytes: number;
  readonly mapOffset: number;
  readonly queues: number;
  readonly queueSize: number;
}

/** The fields; on the wire the structure is padded to a multiple of 8 bytes, which front ends insist on. */
export const INFLIGHT_BYTES = 20;
const INFLIGHT_WIRE_BYTES = 24;

export function encodeInflight(info: InflightInfo): Buffer {
  const payload = Buffer.alloc(INFLIGHT_WIRE_BYTES);
  payload.writeBigUInt64LE(BigInt(info.mapBytes), 0);
  payload.writeBigUInt64LE(BigInt(info.mapOffset), 8);
  payload.writeUInt16LE(info.queues, 16);
  payload.writeUInt16LE(info.queueSize, 18);
  return payload;
}

export function decodeInflight(payload: Buffer): InflightInfo {
  return {
    mapBytes: Number(payload.readBigUInt64LE(0)),
    mapOffset: Number(payload.readBigUInt64LE(8)),
    queues: payload.readUInt16LE(16),
    queueSize: payload.readUInt16LE(18),
  };
}
