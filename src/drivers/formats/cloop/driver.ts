/**
 * cloop: compressed images of live CDs (Knoppix), read only.
 *
 * | offset | bytes | field (big-endian) |
 * |---|---|---|
 * | 0 | 128 | a shell script |
 * | 128 | 4 | bytes of a block |
 * | 132 | 4 | number of blocks |
 * | 136 | 8 each | offset of each block, and of the end of the last one |
 *
 * A block is a zlib stream. No options of its own. Beyond the original: the table is read as it is needed, and blocks
 * are decompressed beside the event loop.
 * Source of the facts: the documentation of cloop-utils, "V2.0 Format"; texts of errors are the original's.
 */

import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { allocateIoMemory, copyToVector, vectorOf } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { readingCallbacks } from '../shared/mapped-driver.ts';
import {
  type BlockMap,
  createFound,
  type MappedState,
  Place,
  type TableFile,
} from '../shared/mapped-image.ts';
import { requireReadOnly } from '../shared/read-only.ts';
import { TableCache } from '../shared/table-cache.ts';
import { readBytes } from '../shared/table-io.ts';
import { createUnpackedCache, type UnpackedCache, unpackedPiece } from '../shared/unpacked-cache.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { probeCloop } from './probe.ts';

interface CloopState extends MappedState {
  readonly file: BlockChild;
  readonly blockBytes: number;
  readonly blocks: number;
  readonly table: TableFile;
  readonly unpacked: UnpackedCache;
  /** Of the block that the last lookup has found. */
  packedBytes: number;
}

type CloopNode = BlockNode<CloopState>;

const HEADER_BYTES = 136;
const SECTOR_BYTES = 512;
/** Bytes that one byte of a deflate stream can stand for, and a little more (RFC 1951: 258 bytes in two bits). */
const MAX_DEFLATE_RATIO = 1040;
const MAX_BLOCK_BYTES = 64 * 1024 * 1024;
const MAX_OFFSETS_BYTES = 512 * 1024 * 1024;
const PAGE_BYTES = 4096;
const CACHE_PAGES = 1024;
const CACHE_BYTES = 16 * 1024 * 1024;

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

async function open(node: CloopNode, context: OpenContext): Promise<CloopState> {
  requireReadOnly(node, context);
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const header = await node.layer.graphLock.withRead((guard) => readBytes(file, guard, 0, HEADER_BYTES));
  const blockBytes = header.readUInt32BE(128);
  const blocks = header.readUInt32BE(132);
  if (blockBytes === 0) throw invalid('block_size cannot be zero');
  if (blockBytes % SECTOR_BYTES !== 0) throw invalid(`block_size ${blockBytes} must be a multiple of 512`);
  if (blockBytes > MAX_BLOCK_BYTES) throw invalid(`block_size ${blockBytes} must be 64 MB or less`);
  const offsetsBytes = (blocks + 1) * 8;
  if (offsetsBytes > MAX_OFFSETS_BYTES)
    throw invalid('image requires too many offsets, try increasing block size');
  if (HEADER_BYTES + offsetsBytes > file.node.totalBytes)
    throw invalid(`offsets of ${blocks} blocks are not inside the file, image file is corrupt`);
  return {
    file,
    blockBytes,
    blocks,
    table: {
      child: file,
      cache: new TableCache(PAGE_BYTES, CACHE_PAGES),
      endBytes: HEADER_BYTES + offsetsBytes,
    },
    unpacked: createUnpackedCache(CACHE_BYTES),
    packedBytes: 0,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

const map: BlockMap<CloopState> = {
  lookup({ state }, offset, bytes) {
    const { blockBytes, table, found, file } = state;
    const index = Math.floor(offset / blockBytes);
    // Two offsets; they may lie in two pages.
    const ends: number[] = [];
    for (const at of [index * 8, index * 8 + 8]) {
      const pageOffset = HEADER_BYTES + at - (at % PAGE_BYTES);
      const page = table.cache.get(pageOffset);
      if (page === undefined) return { tables: table, offset: pageOffset };
      ends.push(Number(page.view.getBigUint64(at % PAGE_BYTES)));
    }
    const [from, to] = ends as [number, number];
    if (to < from) throw damaged(`offsets not monotonically increasing at index ${index + 1}`);
    // Data that cannot be compressed grows a little.
    if (to - from > 2 * MAX_BLOCK_BYTES || to > file.node.totalBytes)
      throw damaged(`invalid compressed block size at index ${index + 1}`);
    found.kind = Place.packed;
    found.child = file;
    found.host = from;
    found.bytes = Math.min(bytes, blockBytes - (offset % blockBytes));
    state.packedBytes = to - from;
    return null;
  },
  async readPacked(node, guard, { host, offset }, vec) {
    const { state } = node;
    const { blockBytes, unpacked, file, packedBytes } = state;
    const index = Math.floor(offset / blockBytes);
    const content = await unpackedPiece(unpacked, index, blockBytes, async () => {
      const mem = allocateIoMemory(packedBytes);
      await co.preadv(file.node, guard, host, packedBytes, vectorOf(mem), 0);
      return inflateBlock(mem.buf, blockBytes);
    });
    const within = offset % blockBytes;
    copyToVector(vec, content.subarray(within, within + vec.bytes));
  },
};

function damaged(message: string): BlockError {
  return new BlockError(`${message}, image file is corrupt`, { errno: E.EIO });
}

async function inflateBlock(packed: Buffer, blockBytes: number): Promise<Buffer> {
  // Memory for a block is taken only where so few bytes can make one.
  if (packed.length * MAX_DEFLATE_RATIO < blockBytes) throw ioError(E.EIO);
  const options = { maxOutputLength: blockBytes, chunkSize: blockBytes + 64 };
  let content: Buffer;
  try {
    content = await promisify<Buffer, zlib.ZlibOptions, Buffer>(zlib.inflate)(packed, options);
  } catch {
    throw ioError(E.EIO);
  }
  if (content.length !== blockBytes) throw ioError(E.EIO);
  return content;
}

export const cloop: BlockDriver<CloopState> = {
  name: 'cloop',
  ...readingCallbacks(map),
  probe: probeCloop,
  open,
  reopenCommit: () => undefined,
  childPermissions: formatChildPermissions,
  getLength: async ({ state }) => state.blocks * state.blockBytes,
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
};
