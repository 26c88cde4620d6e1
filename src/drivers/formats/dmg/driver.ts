/**
 * dmg: disk images of macOS (UDIF), read only; the driver record. The layout is trailer.ts.
 *
 * Beyond the original: ADC chunks, which it does not have, bzip2, LZFSE and LZMA, which its packages mostly lack;
 * encrypted images and those in several segments are refused by name, and chunks that overlap.
 */

import { allocateIoMemory, copyToVector, vectorOf } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { readingCallbacks } from '../shared/mapped-driver.ts';
import { type BlockMap, createFound, type MappedState, Place } from '../shared/mapped-image.ts';
import { requireReadOnly } from '../shared/read-only.ts';
import { createUnpackedCache, type UnpackedCache, unpackedPiece } from '../shared/unpacked-cache.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { type Chunk, ChunkType, findChunk, isPacked, readChunks } from './chunks.ts';
import { probeDmg } from './probe.ts';
import { readTables, readTrailer } from './trailer.ts';
import { unpackChunk } from './unpack.ts';

interface DmgState extends MappedState {
  readonly file: BlockChild;
  readonly chunks: readonly Chunk[];
  readonly unpacked: UnpackedCache;
}

type DmgNode = BlockNode<DmgState>;

/** Chunks are 256 KiB to 1 MiB long. */
const CACHE_BYTES = 16 * 1024 * 1024;

async function open(node: DmgNode, context: OpenContext): Promise<DmgState> {
  requireReadOnly(node, context);
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const chunks = await node.layer.graphLock.withRead(async (guard) => {
    const trailer = await readTrailer(file, guard);
    const tables = await readTables(file, guard, trailer);
    return readChunks(tables, trailer.dataOffset, file.node.totalBytes);
  });
  return {
    file,
    chunks,
    unpacked: createUnpackedCache(CACHE_BYTES),
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

const map: BlockMap<DmgState> = {
  lookup({ state }, offset, bytes) {
    const { chunks, found } = state;
    const index = findChunk(chunks, offset);
    if (index === null) {
      throw new BlockError(`dmg: Sector ${Math.floor(offset / 512)} is in no chunk`, { errno: E.EIO });
    }
    const chunk = chunks[index]!;
    const within = offset - chunk.start;
    found.bytes = Math.min(bytes, chunk.bytes - within);
    found.child = state.file;
    found.host = 0;
    if (chunk.type === ChunkType.zero || chunk.type === ChunkType.ignore) {
      found.kind = Place.zero;
    } else if (chunk.type === ChunkType.raw) {
      found.kind = Place.data;
      found.host = chunk.host + within;
    } else {
      found.kind = Place.packed;
    }
    return null;
  },
  async readPacked(node, guard, { offset }, vec) {
    const { chunks, file, unpacked } = node.state;
    const index = findChunk(chunks, offset);
    const chunk = index === null ? undefined : chunks[index];
    if (index === null || chunk === undefined) throw ioError(E.EIO);
    if (!isPacked(chunk))
      throw new BlockError(`dmg: Chunk of unknown type 0x${chunk.type.toString(16)}`, { errno: E.EIO });
    const content = await unpackedPiece(unpacked, index, chunk.bytes, async () => {
      const mem = allocateIoMemory(chunk.hostBytes);
      await co.preadv(file.node, guard, chunk.host, chunk.hostBytes, vectorOf(mem), 0);
      return unpackChunk(chunk, mem.buf);
    });
    const within = offset - chunk.start;
    copyToVector(vec, content.subarray(within, within + vec.bytes));
  },
};

export const dmg: BlockDriver<DmgState> = {
  name: 'dmg',
  ...readingCallbacks(map),
  probe: probeDmg,
  open,
  reopenCommit: () => undefined,
  childPermissions: formatChildPermissions,
  async getLength({ state }) {
    const last = state.chunks.at(-1)!;
    return last.start + last.bytes;
  },
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
};
