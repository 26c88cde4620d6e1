/**
 * Where a zstd frame ends: the frame and block headers of RFC 8878, section 3.1, without the content.
 *
 * A compressed cluster is padded to whole sectors with whatever follows in the image, so its decoder has to be given
 * exactly the frame.
 */

const FRAME_MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a50;

const DICTIONARY_ID_BYTES = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES = [0, 2, 4, 8];
const CHECKSUM_BYTES = 4;
const BLOCK_TYPE_RLE = 1;

export interface ZstdFrame {
  readonly start: number;
  /** Past the frame's last byte; at most the input's length. */
  readonly end: number;
  readonly skippable: boolean;
}

function headerBytes(descriptor: number): number {
  const singleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const contentSizeBytes = sizeFlag === 0 && singleSegment ? 1 : (CONTENT_SIZE_BYTES[sizeFlag] ?? 0);
  const windowBytes = singleSegment ? 0 : 1;
  return 4 + 1 + windowBytes + (DICTIONARY_ID_BYTES[descriptor & 3] ?? 0) + contentSizeBytes;
}

/** The frame that begins at `start`, or null when there is no whole frame. */
export function findZstdFrame(input: Buffer, start: number): ZstdFrame | null {
  if (start + 8 > input.length) return null;
  const magic = input.readUInt32LE(start);
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    const end = start + 8 + input.readUInt32LE(start + 4);
    return end <= input.length ? { start, end, skippable: true } : null;
  }
  if (magic !== FRAME_MAGIC) return null;
  const descriptor = input.readUInt8(start + 4);
  let at = start + headerBytes(descriptor);
  for (let last = false; !last; ) {
    if (at + 3 > input.length) return null;
    const header = input.readUIntLE(at, 3);
    last = (header & 1) === 1;
    const rle = ((header >> 1) & 3) === BLOCK_TYPE_RLE;
    at += 3 + (rle ? 1 : header >> 3);
  }
  if ((descriptor & 4) !== 0) at += CHECKSUM_BYTES;
  return at <= input.length ? { start, end: at, skippable: false } : null;
}
