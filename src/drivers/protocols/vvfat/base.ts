/** The disk as the folder was when it was opened: any range of it, out of memory and the host's files. */

import { type FileHandle, open } from 'node:fs/promises';
import path from 'node:path';
import { type Layout, partitionSector, reservedSectors, SECTOR_BYTES } from './layout.ts';
import type { Extent, Scanned } from './scan.ts';

/** Files of the host that are open at once, beside those that must stay open. */
const MAX_OPEN = 64;

export interface BaseDisk {
  readonly dir: string;
  readonly layout: Layout;
  readonly scanned: Scanned;
  /** Extents with clusters, in order. */
  readonly extents: readonly Extent[];
  readonly partition: Buffer;
  readonly reserved: Buffer;
  /** By path. What was replaced or removed in the folder stays open: its clusters are read from it still. */
  readonly files: Map<string, Promise<FileHandle>>;
  readonly pinned: Set<string>;
}

export function createBase(dir: string, layout: Layout, scanned: Scanned, label: string): BaseDisk {
  return {
    dir,
    layout,
    scanned,
    extents: scanned.extents.filter(({ count }) => count > 0).sort((one, other) => one.first - other.first),
    partition: partitionSector(layout),
    reserved: reservedSectors(layout, label, scanned.usedClusters),
    files: new Map(),
    pinned: new Set(),
  };
}

export async function closeBase({ files }: BaseDisk): Promise<void> {
  const handles = await Promise.allSettled(files.values());
  files.clear();
  for (const handle of handles) if (handle.status === 'fulfilled') await handle.value.close();
}

function fileOf(base: BaseDisk, name: string): Promise<FileHandle> {
  const known = base.files.get(name);
  if (known !== undefined) return known;
  const file = open(path.join(base.dir, name), 'r');
  base.files.set(name, file);
  file.catch(() => base.files.delete(name));
  trim(base);
  return file;
}

function trim({ files, pinned }: BaseDisk): void {
  if (files.size - pinned.size <= MAX_OPEN) return;
  for (const [name, file] of files) {
    if (pinned.has(name)) continue;
    files.delete(name);
    // Whoever is reading holds it up: closing waits for that.
    void file.then((handle) => handle.close()).catch(() => undefined);
    return;
  }
}

/** Keeps the file as it is now, whatever becomes of it in the folder. */
export async function pinFile(base: BaseDisk, name: string): Promise<void> {
  if (
    base.pinned.has(name) ||
    !base.extents.some((extent) => extent.path === name && extent.content === null)
  )
    return;
  await fileOf(base, name);
  base.pinned.add(name);
}

function extentAt(extents: readonly Extent[], cluster: number): Extent | null {
  let low = 0;
  let high = extents.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const { first, count } = extents[middle]!;
    if (cluster < first) high = middle - 1;
    else if (cluster >= first + count) low = middle + 1;
    else return extents[middle]!;
  }
  return null;
}

/** Fills `target` with the bytes from `offset` of the disk on. */
export async function readBase(base: BaseDisk, offset: number, target: Buffer): Promise<void> {
  for (let at = 0; at < target.length; ) at += await readPart(base, offset + at, target.subarray(at));
}

/** Copies what `region` has of the part at `offset`, zeroes behind its end; `end` is where the next region begins. */
function copyRegion(region: Buffer, start: number, end: number, offset: number, target: Buffer): number {
  const bytes = Math.min(target.length, end - offset);
  const within = offset - start;
  const copied = Math.max(0, Math.min(bytes, region.length - within));
  if (copied > 0) region.copy(target, 0, within, within + copied);
  target.fill(0, copied, bytes);
  return bytes;
}

async function readPart(base: BaseDisk, offset: number, target: Buffer): Promise<number> {
  const { layout, scanned } = base;
  const begin = layout.start * SECTOR_BYTES;
  if (offset < begin) return copyRegion(base.partition, 0, begin, offset, target);
  const at = (sector: number): number => begin + sector * SECTOR_BYTES;
  if (offset < at(layout.tableStart))
    return copyRegion(base.reserved, begin, at(layout.tableStart), offset, target);
  for (const copy of [0, 1]) {
    const start = at(layout.tableStart + copy * layout.tableSectors);
    const end = start + layout.tableSectors * SECTOR_BYTES;
    if (offset < end) return copyRegion(scanned.table, start, end, offset, target);
  }
  const dataStart = at(layout.dataStart);
  if (offset < dataStart) return copyRegion(scanned.root, at(layout.rootStart), dataStart, offset, target);
  const { clusterBytes } = layout;
  const cluster = 2 + Math.floor((offset - dataStart) / clusterBytes);
  const extent = extentAt(base.extents, cluster);
  if (extent === null) {
    const bytes = Math.min(target.length, clusterBytes - ((offset - dataStart) % clusterBytes));
    target.fill(0, 0, bytes);
    return bytes;
  }
  const start = dataStart + (extent.first - 2) * clusterBytes;
  const end = start + extent.count * clusterBytes;
  if (extent.content !== null) return copyRegion(extent.content, start, end, offset, target);
  const bytes = Math.min(target.length, end - offset);
  const part = target.subarray(0, bytes);
  part.fill(0);
  // A file that has become longer shows what it was, one that has become shorter ends in zeroes.
  const left = Math.min(bytes, Math.max(0, extent.bytes - (offset - start)));
  const file = await fileOf(base, extent.path);
  for (let done = 0; done < left; ) {
    const { bytesRead } = await file.read(part, done, left - done, offset - start + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return bytes;
}
