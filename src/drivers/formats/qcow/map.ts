/** Where the clusters of a qcow image are, how new ones are taken, and how that reaches the disk. */

import { allocateIoMemory, copyToVector, type IoVector, vectorOf } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BackingName } from '../../../block/contract/image.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { decompressCluster } from '../../compress/codec.ts';
import type { BlockCipher } from '../../crypto/block-cipher.ts';
import { decryptBulk } from '../../crypto/bulk.ts';
import { HOLE, PACKED } from '../shared/flat-table.ts';
import { type BlockMap, Place, type TableNeed } from '../shared/mapped-image.ts';
import {
  abandonTwoLevel,
  linkTwoLevel,
  lookupTwoLevel,
  planTwoLevel,
  type TwoLevelState,
  type TwoLevelTable,
  twoLevelWriteBack,
} from '../shared/two-level.ts';
import type { QcowHeader } from './header.ts';

export interface QcowState extends TwoLevelState {
  readonly file: BlockChild;
  readonly header: QcowHeader;
  readonly backing: BackingName | null;
  /** Of an encrypted image; null: none, or it was opened for information. */
  readonly cipher: BlockCipher | null;
  readonly isEncrypted: boolean;
  /** Of the compressed cluster that the last lookup has found: bytes in the file. 0: it is encrypted data. */
  packedBytes: number;
  /** The compressed cluster that was read last: readers come in order and in pieces. */
  unpacked: { readonly host: number; readonly content: Buffer } | null;
}

export type QcowNode = BlockNode<QcowState>;

/** Bit 63 of an L2 entry, in its upper half. */
const COMPRESSED_HIGH = 0x80000000;

/** What an L2 entry says; throws for one that cannot be. `end`: of what may be named. */
export function decodeEntry(view: DataView, at: number, end: number): number {
  const high = view.getUint32(at);
  if (high >= COMPRESSED_HIGH) return PACKED;
  const offset = high * 2 ** 32 + view.getUint32(at + 4);
  if (offset === 0) return HOLE;
  if (offset >= end)
    throw new BlockError(`Cluster offset 0x${BigInt(offset).toString(16)} is behind the end of the file`, {
      errno: E.EIO,
    });
  return offset;
}

/** Offset and length of a compressed cluster. */
function decodePacked(entry: bigint, clusterBits: number): { readonly host: number; readonly bytes: number } {
  const offsetBits = BigInt(63 - clusterBits);
  const host = entry & ((1n << offsetBits) - 1n);
  return { host: Number(host), bytes: Number((entry >> offsetBits) & ((1n << BigInt(clusterBits)) - 1n)) };
}

/** The entry of a compressed cluster. */
export function encodePacked(host: number, bytes: number, clusterBits: number): bigint {
  return (1n << 63n) | (BigInt(bytes) << BigInt(63 - clusterBits)) | BigInt(host);
}

/** The lookup; compressed clusters are found with their length, encrypted data counts as packed. */
function lookup({ state }: QcowNode, offset: number, bytes: number): TableNeed | null {
  const { table, found, header, space } = state;
  const missing = lookupTwoLevel(table, found, offset, bytes);
  if (missing !== null) return missing;
  if (found.kind === Place.packed) {
    const { page, at } = entryOf(table, offset);
    const packed = decodePacked(page.getBigUint64(at), header.clusterBits);
    if (packed.host + packed.bytes > space.end)
      throw new BlockError(
        `Compressed cluster at 0x${packed.host.toString(16)} is behind the end of the file`,
        {
          errno: E.EIO,
        },
      );
    found.host = packed.host;
    state.packedBytes = packed.bytes;
  } else if (found.kind === Place.data && state.isEncrypted) {
    found.kind = Place.packed;
    state.packedBytes = 0;
  }
  return null;
}

/** The entry of a guest offset whose page is in memory, as a lookup has just shown. */
function entryOf(table: TwoLevelTable, offset: number): { readonly page: DataView; readonly at: number } {
  const index = Math.floor(offset / table.spanBytes);
  const l2 = Number(table.l1.getBigUint64(index * 8));
  const entry = Math.floor((offset % table.spanBytes) / table.blockBytes) * 8;
  const { cache } = table.tables;
  const at = entry % cache.tableBytes;
  return { page: cache.get(l2 + entry - at)!.view, at };
}

/** Clusters and tables begin at multiples of the cluster's size, behind whatever compressed data came before. */
function alignSpace({ space, table }: QcowState): void {
  space.end = Math.ceil(space.end / table.blockBytes) * table.blockBytes;
}

export const map: BlockMap<QcowState> = {
  lookup,
  plan(node, offset) {
    alignSpace(node.state);
    return planTwoLevel(node.state.table, node.state.space, offset);
  },
  link: ({ state }, allocation) => linkTwoLevel(state.table, allocation, allocation.host),
  abandon: ({ state }, allocation, untouched) =>
    abandonTwoLevel(state.table, state.space, allocation, untouched),
  readPacked,
  writeBack: twoLevelWriteBack,
};

async function readPacked(
  node: QcowNode,
  guard: GraphReadGuard,
  { host, offset }: { readonly host: number; readonly offset: number },
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  const { packedBytes, cipher, file, header } = state;
  if (packedBytes === 0 && state.isEncrypted) {
    if (cipher === null) throw new BlockError('The image is encrypted', { errno: E.EIO });
    const mem = allocateIoMemory(vec.bytes);
    await co.preadv(file.node, guard, host, vec.bytes, vectorOf(mem), 0);
    await decryptBulk(cipher, mem.buf, offset);
    copyToVector(vec, mem.buf);
    return;
  }
  const within = offset % 2 ** header.clusterBits;
  const content = await unpack(state, guard, host, packedBytes);
  copyToVector(vec, content.subarray(within, within + vec.bytes));
}

/** The content of a compressed cluster. */
async function unpack(state: QcowState, guard: GraphReadGuard, host: number, bytes: number): Promise<Buffer> {
  if (state.unpacked?.host === host) return state.unpacked.content;
  const mem = allocateIoMemory(bytes);
  await co.preadv(state.file.node, guard, host, bytes, vectorOf(mem), 0);
  const content = await decompressCluster('zlib', mem.buf, 2 ** state.header.clusterBits);
  state.unpacked = { host, content };
  return content;
}
