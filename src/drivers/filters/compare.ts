/** Comparing what was read from several places. */

import { copyFromVector, type IoVector } from '../../aio/memory.ts';

/** Whether both vectors, of equal length, hold the same bytes. */
export function isEqual(a: IoVector, b: IoVector): boolean {
  const [one] = a.segments;
  const [other] = b.segments;
  if (a.segments.length === 1 && b.segments.length === 1) {
    return (
      one!.mem.buf.compare(
        other!.mem.buf,
        other!.start,
        other!.start + other!.length,
        one!.start,
        one!.start + one!.length,
      ) === 0
    );
  }
  return contentOf(a).equals(contentOf(b));
}

/** Index of the first byte in which the vectors, of equal length, differ; -1 when they do not. */
export function firstDifference(a: IoVector, b: IoVector): number {
  if (isEqual(a, b)) return -1;
  const [one, other] = [contentOf(a), contentOf(b)];
  return one.findIndex((byte, at) => byte !== other[at]);
}

/** The bytes of a vector as one buffer. */
export function contentOf(vec: IoVector): Buffer {
  const content = Buffer.allocUnsafe(vec.bytes);
  copyFromVector(vec, content);
  return content;
}
