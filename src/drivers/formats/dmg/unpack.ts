/** Decompressing a chunk. zlib, bzip2 and xz run beside the event loop; Apple's own are computed here in short pieces. */

import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { inTurns } from '../../../aio/host/turns.ts';
import { bzip2Decompress, type Decompress, xzDecompress } from '../../../aio/libraries/bzip2-xz.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { decodeAdc } from '../../compress/adc.ts';
import { decodeLzfse } from '../../compress/lzfse.ts';
import { DamagedStream } from '../../compress/lzfse-sink.ts';
import { type Chunk, ChunkType } from './chunks.ts';

/** Time after which others get their turn. */
const MAX_TURN_MS = 2;

function damaged(chunk: Chunk): BlockError {
  return new BlockError(`Invalid dmg image: chunk at sector ${chunk.start / 512} cannot be decompressed`, {
    errno: E.EIO,
  });
}

async function inflate(input: Buffer, output: Buffer): Promise<number | null> {
  const options = { maxOutputLength: output.length, chunkSize: output.length + 64 };
  const content = await promisify<Buffer, zlib.ZlibOptions, Buffer>(zlib.inflate)(input, options);
  content.copy(output);
  return content.length;
}

function decompressor(chunk: Chunk): Decompress {
  switch (chunk.type) {
    case ChunkType.adc:
      return (input, output) => inTurns(decodeAdc(input, output), MAX_TURN_MS);
    case ChunkType.lzfse:
      return (input, output) => inTurns(decodeLzfse(input, output), MAX_TURN_MS);
    case ChunkType.zlib:
      return inflate;
    case ChunkType.bzip2:
      return library('libbz2', bzip2Decompress());
    default:
      return library('liblzma', xzDecompress());
  }
}

function library(name: string, found: Decompress | null): Decompress {
  if (found !== null) return found;
  throw new BlockError(`${name} is needed for this image, and is not installed`, { errno: E.ENOTSUP });
}

/** The content of a compressed chunk. */
export async function unpackChunk(chunk: Chunk, packed: Buffer): Promise<Buffer> {
  const decompress = decompressor(chunk);
  const output = Buffer.allocUnsafeSlow(chunk.bytes);
  let bytes: number | null;
  try {
    bytes = await decompress(packed, output);
  } catch (error) {
    // What zlib and our own decoders throw says that the data is damaged.
    const { code } = error as { readonly code?: string };
    if (error instanceof DamagedStream || code?.startsWith('Z_') === true || code === 'ERR_BUFFER_TOO_LARGE')
      throw damaged(chunk);
    throw error;
  }
  if (bytes !== chunk.bytes) throw damaged(chunk);
  return output;
}
