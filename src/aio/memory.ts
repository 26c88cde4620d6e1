/**
 * Memory for I/O: buffers whose address the kernel may be given, and vectors over them.
 *
 * V8 never moves the backing store of a dedicated ArrayBuffer, so its address is stable for as long as the Buffer
 * is referenced. Whoever hands an address to the kernel keeps the IoMemory referenced until the completion.
 * Buffers from Node's shared slab (`Buffer.from`, `Buffer.alloc` of small sizes) share a store and are never used
 * here.
 *
 * Here: allocation, vectors, slicing, copying. Not here: pools of request buffers (their owners keep them).
 */

import { assert } from '../errors/error.ts';
import { addressOf } from './ffi.ts';

/** Alignment that satisfies O_DIRECT on every device in use (logical blocks of 512 and 4096 bytes). */
export const IO_ALIGNMENT_BYTES = 4096;

export interface IoMemory {
  readonly buf: Buffer;
  /** Address of buf[0]; exact below 2^53, which covers every user-space address. */
  readonly addr: number;
}

/** `length` bytes at `mem.buf[start]`. */
export interface IoSegment {
  readonly mem: IoMemory;
  readonly start: number;
  readonly length: number;
}

/** Scatter/gather list. `bytes` is the sum of the segments' lengths. */
export interface IoVector {
  readonly segments: readonly IoSegment[];
  readonly bytes: number;
}

/** Allocates `bytes` of uninitialised memory aligned to IO_ALIGNMENT_BYTES, with `headroom` writable bytes before it. */
export function allocateIoMemory(bytes: number, headroom = 0): IoMemory {
  const room = Math.ceil(headroom / IO_ALIGNMENT_BYTES) * IO_ALIGNMENT_BYTES;
  const raw = Buffer.allocUnsafeSlow(bytes + room + IO_ALIGNMENT_BYTES);
  const base = addressOf(raw);
  const aligned = Math.ceil((base + room) / IO_ALIGNMENT_BYTES) * IO_ALIGNMENT_BYTES;
  const from = aligned - headroom;
  return { buf: raw.subarray(from - base, from - base + headroom + bytes), addr: from };
}

/** A vector of one segment. */
export function vectorOf(mem: IoMemory, start = 0, length = mem.buf.length - start): IoVector {
  return { segments: [{ mem, start, length }], bytes: length };
}

/** Bytes [offset, offset+length) of `vec` as a vector of its own; shares the memory. */
export function sliceVector(vec: IoVector, offset: number, length: number): IoVector {
  assert(offset >= 0 && length >= 0 && offset + length <= vec.bytes, 'slice outside the vector');
  if (offset === 0 && length === vec.bytes) return vec;
  const segments: IoSegment[] = [];
  let skip = offset;
  let left = length;
  for (const segment of vec.segments) {
    if (left === 0) break;
    if (skip >= segment.length) {
      skip -= segment.length;
      continue;
    }
    const take = Math.min(segment.length - skip, left);
    segments.push({ mem: segment.mem, start: segment.start + skip, length: take });
    skip = 0;
    left -= take;
  }
  return { segments, bytes: length };
}

/** The vectors one after another; shares the memory. */
export function concatVectors(...vecs: readonly IoVector[]): IoVector {
  return {
    segments: vecs.flatMap((vec) => vec.segments),
    bytes: vecs.reduce((sum, vec) => sum + vec.bytes, 0),
  };
}

/** Fills the vector with one byte value. */
export function fillVector(vec: IoVector, value: number): void {
  for (const { mem, start, length } of vec.segments) mem.buf.fill(value, start, start + length);
}

/** Copies `source` into `vec` from its start; `source` must fit. */
export function copyToVector(vec: IoVector, source: Uint8Array): void {
  assert(source.length <= vec.bytes, 'source larger than the vector');
  let done = 0;
  for (const { mem, start, length } of vec.segments) {
    if (done === source.length) return;
    const take = Math.min(length, source.length - done);
    mem.buf.set(source.subarray(done, done + take), start);
    done += take;
  }
}

/** Copies the vector's bytes into `target` from its start; `target` must be large enough. */
export function copyFromVector(vec: IoVector, target: Uint8Array): void {
  let done = 0;
  for (const { mem, start, length } of vec.segments) {
    target.set(mem.buf.subarray(start, start + length), done);
    done += length;
  }
}

/** Places of a segment that are looked at first: most data are given away by one of them. */
const SAMPLES = 8;

/** Whether none of some bytes of the segment says that it is not zero. */
function seemsZero({ mem: { buf }, start, length }: IoSegment): boolean {
  const step = Math.max(1, Math.floor(length / SAMPLES));
  for (let at = start; at < start + length; at += step) if (buf[at] !== 0) return false;
  return true;
}

/** Whether every byte of the vector is zero. */
export function isZeroVector(vec: IoVector): boolean {
  for (const segment of vec.segments) if (!seemsZero(segment)) return false;
  return vec.segments.every(({ mem, start, length }) => isZero(mem.buf.subarray(start, start + length)));
}

const ZEROES = Buffer.alloc(64 * 1024);

/** Whether every byte is zero; compares in blocks, so that memcmp does the work. */
export function isZero(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += ZEROES.length) {
    const end = Math.min(at + ZEROES.length, bytes.length);
    if (bytes.compare(ZEROES, 0, end - at, at, end) !== 0) return false;
  }
  return true;
}

/** Whether every segment's address and length is a multiple of `alignment` bytes. */
export function isAlignedVector(vec: IoVector, alignment: number): boolean {
  return vec.segments.every(
    ({ mem, start, length }) => (mem.addr + start) % alignment === 0 && length % alignment === 0,
  );
}
