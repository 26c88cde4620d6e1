/** Sets of numbers for checks: memory goes by how many there are, not by how large an image claims to be. */

const CHUNK_BITS = 32768;

export interface SparseBits {
  readonly chunks: Map<number, Uint8Array>;
  count: number;
}

export function createBits(): SparseBits {
  return { chunks: new Map(), count: 0 };
}

/** Adds `index`; false: it was there already. */
export function addBit(bits: SparseBits, index: number): boolean {
  const number = Math.floor(index / CHUNK_BITS);
  let chunk = bits.chunks.get(number);
  if (chunk === undefined) {
    chunk = new Uint8Array(CHUNK_BITS / 8);
    bits.chunks.set(number, chunk);
  }
  const within = index % CHUNK_BITS;
  const mask = 1 << (within & 7);
  if ((chunk[within >> 3]! & mask) !== 0) return false;
  chunk[within >> 3]! |= mask;
  bits.count++;
  return true;
}
