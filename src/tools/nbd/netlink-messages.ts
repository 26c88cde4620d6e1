/**
 * The kernel's NBD client over generic netlink: messages as bytes, and what is in the answers.
 *
 * | bytes | message                                    |
 * |-------|--------------------------------------------|
 * | 0-15  | nlmsghdr: length, type, flags, number, port |
 * | 16-19 | genlmsghdr: command, version, 0            |
 * | 20-   | attributes: length (u16), type (u16), value, padded to 4 bytes |
 *
 * Numbers are the machine's own, little-endian here. Source of the facts: netlink(7), linux/genetlink.h,
 * linux/nbd-netlink.h.
 */

/** Message types of netlink itself. */
const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLA_F_NESTED = 0x8000;
const HEADER_BYTES = 16;
const ATTRIBUTES_AT = HEADER_BYTES + 4;

/** The family that knows the others. */
const CONTROL = { family: 0x10, version: 1, getFamily: 3, familyId: 1, familyName: 2 } as const;

const NBD_VERSION = 1;
export const NBD_FAMILY = 'nbd';
export const NbdCommand = { connect: 1, disconnect: 2 } as const;
const Attribute = {
  ...{ index: 1, sizeBytes: 2, blockSizeBytes: 3, timeout: 4, serverFlags: 5, clientFlags: 6, sockets: 7 },
} as const;
const SOCKET_ITEM = 1;
const SOCKET_FD = 1;

/** Answers end with one whose number is this. */
const SEQUENCE = 1;

function attribute(type: number, value: Buffer): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt16LE(4 + value.length, 0);
  head.writeUInt16LE(type, 2);
  return Buffer.concat([head, value, Buffer.alloc(-value.length & 3)]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function message(family: number, command: number, version: number, attributes: readonly Buffer[]): Buffer {
  const body = Buffer.concat(attributes);
  const head = Buffer.alloc(ATTRIBUTES_AT);
  head.writeUInt32LE(ATTRIBUTES_AT + body.length, 0);
  head.writeUInt16LE(family, 4);
  head.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK, 6);
  head.writeUInt32LE(SEQUENCE, 8);
  head.writeUInt8(command, 16);
  head.writeUInt8(version, 17);
  return Buffer.concat([head, body]);
}

/** Asks for the number of a family. */
export function familyRequest(name: string): Buffer {
  return message(CONTROL.family, CONTROL.getFamily, CONTROL.version, [
    attribute(CONTROL.familyName, Buffer.from(`${name}\0`)),
  ]);
}

export interface KernelDevice {
  /** N of /dev/nbdN. */
  readonly index: number;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  /** Flags of the export, as its server sent them. */
  readonly serverFlags: number;
  /** Descriptors of connections in the transmission phase. */
  readonly sockets: readonly number[];
}

/** Gives the connections to the kernel, which makes them the device's. */
export function connectRequest(family: number, device: KernelDevice): Buffer {
  const { index, sizeBytes, blockSizeBytes, serverFlags, sockets } = device;
  const items = sockets.map((fd) => attribute(SOCKET_ITEM | NLA_F_NESTED, attribute(SOCKET_FD, u32(fd))));
  return message(family, NbdCommand.connect, NBD_VERSION, [
    attribute(Attribute.index, u32(index)),
    attribute(Attribute.sizeBytes, u64(sizeBytes)),
    attribute(Attribute.blockSizeBytes, u64(blockSizeBytes)),
    attribute(Attribute.serverFlags, u64(serverFlags)),
    attribute(Attribute.sockets | NLA_F_NESTED, Buffer.concat(items)),
  ]);
}

export function disconnectRequest(family: number, index: number): Buffer {
  return message(family, NbdCommand.disconnect, NBD_VERSION, [attribute(Attribute.index, u32(index))]);
}

/** What the kernel has answered so far. */
export interface Answers {
  /** 0 or a positive errno; null: the end has not come yet. */
  errno: number | null;
  /** Of the family that was asked for. */
  family: number | null;
}

/** Reads a datagram of answers. What is cut off or of no known kind is passed over. */
export function readAnswers(datagram: Buffer, answers: Answers): void {
  for (let at = 0; at + HEADER_BYTES <= datagram.length; ) {
    const length = datagram.readUInt32LE(at);
    if (length < HEADER_BYTES || at + length > datagram.length) return;
    const type = datagram.readUInt16LE(at + 4);
    if (type === NLMSG_ERROR && length >= HEADER_BYTES + 4)
      answers.errno = 0 - datagram.readInt32LE(at + HEADER_BYTES);
    else if (type === CONTROL.family)
      answers.family = familyOf(datagram.subarray(at + ATTRIBUTES_AT, at + length)) ?? answers.family;
    at += (length + 3) & ~3;
  }
}

function familyOf(attributes: Buffer): number | null {
  for (let at = 0; at + 4 <= attributes.length; ) {
    const length = attributes.readUInt16LE(at);
    if (length < 4) return null;
    if (attributes.readUInt16LE(at + 2) === CONTROL.familyId && at + 6 <= attributes.length)
      return attributes.readUInt16LE(at + 4);
    at += (length + 3) & ~3;
  }
  return null;
}
