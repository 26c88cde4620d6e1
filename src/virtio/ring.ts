/**
 * Split virtqueues in memory: where things are, and what the flags mean. Integers are little-endian.
 *
 * | part        | alignment | content                                                                              |
 * | ----------- | --------- | ------------------------------------------------------------------------------------ |
 * | descriptors |        16 | size times: address u64, length u32, flags u16, next u16                              |
 * | available   |         2 | flags u16, index u16, size times: head u16, used_event u16                            |
 * | used        |         4 | flags u16, index u16, size times: (head u32, length u32), avail_event u16             |
 *
 * Source of the facts: Virtual I/O Device (VIRTIO) 1.2, section 2.7.
 */

export const DESCRIPTOR_BYTES = 16;
export const QUEUE_SIZE_MAX = 32768;

export const DescriptorFlag = {
  /** Another one follows: `next`. */
  next: 1,
  /** The device writes to it. */
  write: 2,
  /** It holds a table of descriptors. */
  indirect: 4,
} as const;

/** Flags of the available and used parts: the other side wants no notification. */
export const NO_NOTIFICATION = 1;

export function availableBytes(size: number): number {
  return 6 + 2 * size;
}

export function usedBytes(size: number): number {
  return 6 + 8 * size;
}

/** Feature bits, as numbers below 64. */
export const Feature = {
  blkSizeMax: 1,
  blkSegMax: 2,
  blkReadOnly: 5,
  blkBlockSize: 6,
  blkFlush: 9,
  blkTopology: 10,
  blkConfigWce: 11,
  blkMultiQueue: 12,
  blkDiscard: 13,
  blkWriteZeroes: 14,
  notifyOnEmpty: 24,
  /** vhost's, not virtio's: writes to guest memory are to be logged. */
  logAll: 26,
  indirectDescriptors: 28,
  eventIndex: 29,
  /** vhost-user's, not virtio's. */
  protocolFeatures: 30,
  version1: 32,
} as const;

/** A set of features: bit numbers as one number. Exact, since none is above 52. */
export function featureSet(...bits: readonly number[]): number {
  return bits.reduce((sum, bit) => sum + 2 ** bit, 0);
}

export function hasFeature(features: number, bit: number): boolean {
  return Math.floor(features / 2 ** bit) % 2 === 1;
}

/** Whether a side that wants to hear when its index is past `event` must be told of the step from `old` to `now`. */
export function needsEvent(event: number, now: number, old: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
}
