/**
 * The format extension of a Parallels image: dirty bitmaps, which become bitmaps of the node, to be read only.
 *
 * A cluster: magic, MD5 of the rest, then features, each with magic, flags, bytes and data, the last one all zeroes. The
 * data of a bitmap: sectors it covers, UUID, granularity in sectors, entries of its table; then the table, where 0 is a
 * cluster of zeroes, 1 one of ones, else a sector of the file. Who writes to the disk drops the extension.
 * Source of the facts: as of header.ts.
 */

import { createHash } from 'node:crypto';
import { createTurns } from '../../../aio/host/turns.ts';
import { createBitmap, setDirty } from '../../../block/bitmaps/dirty-bitmap.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readBytes } from '../shared/table-io.ts';
import { SECTOR_BYTES } from './header.ts';
import type { ParallelsNode } from './map.ts';

const EXTENSION_MAGIC = 0xab234cef23dcea87n;
const BITMAP_MAGIC = 0x20385fae252cb34an;
const FEATURE_BYTES = 24;
const BITMAP_BYTES = 32;
/** A feature that whoever does not know it must not overlook. */
const NECESSARY = 1n;
const MAX_BITMAPS = 65535;

function invalid(message: string): BlockError {
  return new BlockError(`Invalid Parallels format extension: ${message}`, { errno: E.EINVAL });
}

/** Reads the extension of an image that is not going to be written to. */
export async function loadExtension(node: ParallelsNode, guard: GraphReadGuard): Promise<void> {
  const { header, file } = node.state;
  const { extensionOffset, clusterBytes } = header;
  if (extensionOffset === 0) return;
  if (extensionOffset + clusterBytes > Math.ceil(file.node.totalBytes / clusterBytes) * clusterBytes)
    throw invalid('it is not inside the file');
  const cluster = await readBytes(file, guard, extensionOffset, clusterBytes);
  if (cluster.readBigUInt64LE(0) !== EXTENSION_MAGIC) throw invalid('wrong magic number');
  const sum = createHash('md5').update(cluster.subarray(24)).digest();
  if (!sum.equals(cluster.subarray(8, 24))) throw invalid('the checksum is wrong');
  let bitmaps = 0;
  for (let at = 24; ; ) {
    if (at + FEATURE_BYTES > cluster.length) throw invalid('a feature reaches behind its end');
    const magic = cluster.readBigUInt64LE(at);
    if (magic === 0n) return;
    const flags = cluster.readBigUInt64LE(at + 8);
    const bytes = cluster.readUInt32LE(at + 16);
    const data = cluster.subarray(at + FEATURE_BYTES, at + FEATURE_BYTES + bytes);
    if (data.length < bytes) throw invalid('a feature reaches behind its end');
    if (magic === BITMAP_MAGIC) {
      if (++bitmaps > MAX_BITMAPS) throw invalid('too many bitmaps');
      await loadBitmap(node, guard, data);
    } else if ((flags & NECESSARY) !== 0n) {
      throw new BlockError(`Unknown necessary feature 0x${magic.toString(16)}`, { errno: E.ENOTSUP });
    }
    at += FEATURE_BYTES + Math.ceil(bytes / 8) * 8;
  }
}

function uuidText(id: Buffer): string {
  const hex = id.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

async function loadBitmap(node: ParallelsNode, guard: GraphReadGuard, data: Buffer): Promise<void> {
  const { header, file } = node.state;
  if (data.length < BITMAP_BYTES) throw invalid('a bitmap is too short');
  const bytes = Number(data.readBigUInt64LE(0)) * SECTOR_BYTES;
  const granularity = data.readUInt32LE(24) * SECTOR_BYTES;
  const entries = data.readUInt32LE(28);
  if (bytes !== header.diskBytes) throw invalid('a bitmap is not as long as the disk');
  if (granularity === 0 || !Number.isInteger(Math.log2(granularity)))
    throw invalid('the granularity of a bitmap is no power of two');
  if (BITMAP_BYTES + entries * 8 > data.length) throw invalid('the table of a bitmap is too short');
  const coveredByCluster = header.clusterBytes * 8 * granularity;
  if (entries < Math.ceil(bytes / coveredByCluster)) throw invalid('the table of a bitmap is too short');
  const bitmap = createBitmap(node, {
    name: uuidText(data.subarray(8, 24)),
    granularityBytes: granularity,
    enabled: false,
    persistent: false,
    inconsistent: false,
    readOnly: true,
  });
  const turns = createTurns();
  for (let i = 0; i * coveredByCluster < bytes; i++) {
    await turns.next();
    const entry = Number(data.readBigUInt64LE(BITMAP_BYTES + i * 8));
    const from = i * coveredByCluster;
    const covered = Math.min(coveredByCluster, bytes - from);
    if (entry === 0) continue;
    if (entry === 1) {
      setDirty(bitmap, from, covered);
      continue;
    }
    const place = entry * SECTOR_BYTES;
    if (place + header.clusterBytes > file.node.totalBytes) throw invalid('a bitmap is not inside the file');
    const bits = await readBytes(file, guard, place, Math.ceil(covered / granularity / 8));
    for (let byte = 0; byte < bits.length; byte++) {
      if (bits[byte] === 0) continue;
      for (let bit = 8 * byte; bit < 8 * byte + 8 && bit * granularity < covered; bit++) {
        if ((bits[byte]! & (1 << (bit & 7))) === 0) continue;
        setDirty(bitmap, from + bit * granularity, Math.min(granularity, covered - bit * granularity));
      }
    }
  }
}
