/** What queries tell about nodes, as the schema's records. */

import type {
  BlockDeviceInfo,
  BlockDeviceStats,
  BlockLimitsInfo,
  BlockStats,
  ImageInfo,
  ImageInfoSpecific,
  SnapshotInfo,
} from '../../../schema/generated/types.ts';
import { createTurns } from '../../aio/host/turns.ts';
import { dirtyBitmapInfos } from '../bitmaps/dirty-bitmap.ts';
import type { InternalSnapshot } from '../contract/image.ts';
import { chainChild, snapshotKeeper } from '../graph/chain.ts';
import type { BlockNode } from '../graph/node.ts';
import { infoOrNull, wrapped } from '../io/callbacks.ts';
import { backingOf, chainDepth } from '../io/status-chain.ts';
import type { BlockLayer } from '../layer.ts';
import { nodeFilename } from '../open/filename.ts';
import { placeOf, relativeName } from '../open/image-name.ts';

/** What the node's image is: the record of `query-named-block-nodes` and of the tools, without the images below. */
export async function imageInfo(node: BlockNode): Promise<ImageInfo> {
  const info = await infoOrNull(node);
  const specific = node.driver.specificInfo?.(node);
  const image: ImageInfo = {
    filename: nodeFilename(node),
    format: node.driver.name,
    'virtual-size': node.totalBytes,
  };
  const allocated = await wrapped.getAllocatedFileSize(node);
  if (allocated >= 0) image['actual-size'] = allocated;
  if (isEncrypted(node, specific)) image.encrypted = true;
  if (info !== null) {
    if (info.clusterSizeBytes !== 0) image['cluster-size'] = info.clusterSizeBytes;
    image['dirty-flag'] = info.isDirty ?? false;
  }
  if (specific !== undefined) image['format-specific'] = specific;
  addBackingName(node, image);
  const kept = snapshotKeeper(node);
  const snapshots = kept?.snapshots.list(kept.keeper) ?? [];
  if (snapshots.length > 0) image.snapshots = snapshots.map(snapshotInfo);
  image.limits = limitsInfo(node);
  return image;
}

/** How requests to the node are aligned and split; what has no limit is left out. */
function limitsInfo({ limits }: BlockNode): BlockLimitsInfo {
  const optional = {
    'max-discard': limits.maxPdiscard,
    'discard-alignment': limits.pdiscardAlignment,
    'max-write-zeroes': limits.maxPwriteZeroes,
    'write-zeroes-alignment': limits.pwriteZeroesAlignment,
    'opt-transfer': limits.optTransfer,
    'max-transfer': limits.maxTransfer,
  };
  return {
    'request-alignment': limits.requestAlignment,
    ...Object.fromEntries(Object.entries(optional).filter(([, bytes]) => bytes !== 0)),
    'max-iov': limits.maxIov,
    'min-mem-alignment': limits.minMemAlignment,
    'opt-mem-alignment': limits.optMemAlignment,
  };
}

function isEncrypted(node: BlockNode, specific: ImageInfoSpecific | undefined): boolean {
  if (node.driver.isEncrypted?.(node) === true) return true;
  return specific !== undefined && 'encrypt' in specific.data;
}

function addBackingName(node: BlockNode, image: ImageInfo): void {
  const backing = node.driver.backingName?.(node) ?? null;
  if (backing === null) return;
  image['backing-filename'] = backing.filename;
  // A backing file that is named relative to an image whose place is not known has no full name.
  const full = fullBackingName(node, backing.filename);
  if (full !== null) image['full-backing-filename'] = full;
  if (backing.format !== null) image['backing-filename-format'] = backing.format;
}

function fullBackingName(node: BlockNode, filename: string): string | null {
  // What else is said of the image does not change where it is.
  const place = placeOf(node);
  if (place !== null) return relativeName(place, filename);
  return relativeName('/', filename) === filename ? filename : null;
}

/** How queries show an internal snapshot. */
export function snapshotInfo(snapshot: InternalSnapshot): SnapshotInfo {
  const clock = snapshot.vmClockNanoseconds;
  const info: SnapshotInfo = {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateBytes,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': Number(clock / 1_000_000_000n),
    'vm-clock-nsec': Number(clock % 1_000_000_000n),
  };
  if (snapshot.icount !== null) info.icount = Number(snapshot.icount);
  return info;
}

/** imageInfo with those of the images below, each inside the one above. */
async function chainInfo(node: BlockNode): Promise<ImageInfo> {
  const infos: ImageInfo[] = [];
  for (let at: BlockNode | null = node; at !== null; at = chainChild(at)?.node ?? null)
    infos.push(await imageInfo(at));
  return infos.reduceRight((below, image) => ({ ...image, 'backing-image': below }));
}

/** The original shows what it keeps as unsigned as a signed number. */
function shownThreshold(bytes: number): number {
  return bytes < 2 ** 63 ? bytes : Math.min(bytes - 2 ** 64, -1);
}

/** One entry of query-named-block-nodes; `flat`: without the images below, and as if there were none. */
async function blockDeviceInfo(node: BlockNode, flat: boolean): Promise<BlockDeviceInfo> {
  const { settings } = node;
  const image = flat ? await imageInfo(node) : await chainInfo(node);
  const backing = backingOf(node);
  return {
    file: nodeFilename(node),
    'node-name': node.name,
    ro: node.shownReadOnly,
    drv: node.driver.name,
    ...(backing !== null && { backing_file: nodeFilename(backing) }),
    backing_file_depth: flat ? 0 : chainDepth(node),
    encrypted: image.encrypted === true,
    detect_zeroes: settings.detectZeroes,
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image,
    cache: { writeback: true, direct: settings.cache.direct, 'no-flush': settings.cache.noFlush },
    write_threshold: shownThreshold(node.writeThreshold),
    ...(node.dirtyBitmaps.all.size > 0 && { 'dirty-bitmaps': dirtyBitmapInfos(node) }),
    active: node.active,
    children: node.children.map((edge) => ({ child: edge.name, 'node-name': edge.node.name })),
  };
}

/** Counters of requests belong to devices, which this daemon has none of: they are zero for nodes, as documented. */
function deviceStats(node: BlockNode): BlockDeviceStats {
  return {
    rd_bytes: 0,
    wr_bytes: 0,
    zone_append_bytes: 0,
    unmap_bytes: 0,
    rd_operations: 0,
    wr_operations: 0,
    zone_append_operations: 0,
    flush_operations: 0,
    unmap_operations: 0,
    rd_total_time_ns: 0,
    wr_total_time_ns: 0,
    zone_append_total_time_ns: 0,
    flush_total_time_ns: 0,
    unmap_total_time_ns: 0,
    wr_highest_offset: node.writeHighestOffset,
    rd_merged: 0,
    wr_merged: 0,
    zone_append_merged: 0,
    unmap_merged: 0,
    failed_rd_operations: 0,
    failed_wr_operations: 0,
    failed_zone_append_operations: 0,
    failed_flush_operations: 0,
    failed_unmap_operations: 0,
    invalid_rd_operations: 0,
    invalid_wr_operations: 0,
    invalid_zone_append_operations: 0,
    invalid_flush_operations: 0,
    invalid_unmap_operations: 0,
    account_invalid: false,
    account_failed: false,
    timed_stats: [],
  };
}

/** One entry of query-blockstats with query-nodes=true: the node and the file below it. */
export function nodeStats(node: BlockNode): BlockStats {
  const stats: BlockStats = { 'node-name': node.name, stats: deviceStats(node) };
  const specific = node.driver.statistics?.(node);
  if (specific !== undefined) stats['driver-specific'] = specific;
  const below = node.primaryChild;
  if (below !== null) stats.parent = nodeStats(below.node);
  return stats;
}

/** Nodes in the order in which the original has them; see BlockNode.order. */
export function nodesInOrder(layer: BlockLayer): readonly BlockNode[] {
  return layer.nodes.toSorted((one, other) => (one.order ?? 0) - (other.order ?? 0));
}

/** Newest node first, as the original lists them. */
export async function namedBlockNodes(layer: BlockLayer, flat: boolean): Promise<BlockDeviceInfo[]> {
  const infos: BlockDeviceInfo[] = [];
  const turns = createTurns();
  for (const node of nodesInOrder(layer).toReversed()) {
    infos.push(await blockDeviceInfo(node, flat));
    await turns.next();
  }
  return infos;
}

/** Counters of every node, oldest first. */
export async function allNodeStats(layer: BlockLayer): Promise<BlockStats[]> {
  const turns = createTurns();
  const stats: BlockStats[] = [];
  for (const node of nodesInOrder(layer)) {
    await turns.next();
    stats.push(nodeStats(node));
  }
  return stats;
}
