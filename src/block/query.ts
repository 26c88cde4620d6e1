/** What queries tell about nodes, as the schema's records. */

import type {
  BlockDeviceInfo,
  BlockDeviceStats,
  BlockStats,
  ImageInfo,
} from '../../schema/generated/types.ts';
import { infoOrNull, wrapped } from './callbacks.ts';
import { dirtyBitmapInfos } from './dirty-bitmap.ts';
import { nodeFilename } from './filename.ts';
import type { BlockLayer } from './layer.ts';
import type { BlockNode } from './node.ts';

async function imageInfo(node: BlockNode): Promise<ImageInfo> {
  const info = await infoOrNull(node);
  const image: ImageInfo = {
    filename: nodeFilename(node),
    format: node.driver.name,
    'virtual-size': node.totalBytes,
    'actual-size': await wrapped.getAllocatedFileSize(node),
  };
  if (info !== null) {
    if (info.clusterSizeBytes !== 0) image['cluster-size'] = info.clusterSizeBytes;
    image['dirty-flag'] = info.isDirty ?? false;
  }
  return image;
}

/** One entry of query-named-block-nodes. No node here has a backing file, so flat makes no difference yet. */
export async function blockDeviceInfo(node: BlockNode): Promise<BlockDeviceInfo> {
  const { settings } = node;
  return {
    file: nodeFilename(node),
    'node-name': node.name,
    ro: node.readOnly,
    drv: node.driver.name,
    backing_file_depth: 0,
    encrypted: false,
    detect_zeroes: settings.detectZeroes,
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: await imageInfo(node),
    cache: { writeback: true, direct: settings.cache.direct, 'no-flush': settings.cache.noFlush },
    write_threshold: 0,
    ...(node.dirtyBitmaps.all.size > 0 && { 'dirty-bitmaps': dirtyBitmapInfos(node) }),
  };
}

/** Counters of requests belong to devices, which this daemon has none of: they are zero for nodes, as documented. */
function deviceStats(node: BlockNode): BlockDeviceStats {
  return {
    rd_bytes: 0,
    wr_bytes: 0,
    unmap_bytes: 0,
    rd_operations: 0,
    wr_operations: 0,
    flush_operations: 0,
    unmap_operations: 0,
    rd_total_time_ns: 0,
    wr_total_time_ns: 0,
    flush_total_time_ns: 0,
    unmap_total_time_ns: 0,
    wr_highest_offset: node.writeHighestOffset,
    rd_merged: 0,
    wr_merged: 0,
    unmap_merged: 0,
    failed_rd_operations: 0,
    failed_wr_operations: 0,
    failed_flush_operations: 0,
    failed_unmap_operations: 0,
    invalid_rd_operations: 0,
    invalid_wr_operations: 0,
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

/** Newest node first, as the original lists them. */
export async function namedBlockNodes(layer: BlockLayer): Promise<BlockDeviceInfo[]> {
  const infos: BlockDeviceInfo[] = [];
  for (const node of layer.nodes.toReversed()) infos.push(await blockDeviceInfo(node));
  return infos;
}
