/**
 * Compressed pieces of an image that have been decompressed: the last ones are kept, since readers come in order and in
 * small pieces, and readers of the same piece wait for one decompression.
 */

export interface UnpackedCache {
  readonly pieces: Map<number, Promise<Buffer>>;
  readonly bytesOf: Map<number, number>;
  /** Bytes of what is kept, and the most that shall be. */
  bytes: number;
  readonly maxBytes: number;
}

export function createUnpackedCache(maxBytes: number): UnpackedCache {
  return { pieces: new Map(), bytesOf: new Map(), bytes: 0, maxBytes };
}

/** Piece `index` of `bytes` bytes, by `unpack` if it is not there. One that fails is not kept. */
export function unpackedPiece(
  cache: UnpackedCache,
  index: number,
  bytes: number,
  unpack: () => Promise<Buffer>,
): Promise<Buffer> {
  const known = cache.pieces.get(index);
  if (known !== undefined) {
    // A Map keeps the order of insertion: the first is the one that was not used for longest.
    cache.pieces.delete(index);
    cache.pieces.set(index, known);
    return known;
  }
  const piece = unpack();
  cache.pieces.set(index, piece);
  cache.bytesOf.set(index, bytes);
  cache.bytes += bytes;
  for (const oldest of cache.pieces.keys()) {
    if (cache.bytes <= cache.maxBytes || oldest === index) break;
    forget(cache, oldest);
  }
  piece.catch(() => {
    if (cache.pieces.get(index) === piece) forget(cache, index);
  });
  return piece;
}

function forget(cache: UnpackedCache, index: number): void {
  cache.pieces.delete(index);
  cache.bytes -= cache.bytesOf.get(index) ?? 0;
  cache.bytesOf.delete(index);
}
