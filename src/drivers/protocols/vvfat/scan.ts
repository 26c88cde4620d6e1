/**
 * From a folder of the host to a disk: what is in it gets clusters in order, folders become bytes, files stay where they
 * are. Links, devices and the like are left out: nothing outside the folder is shown.
 */

import { lstat, readdir } from 'node:fs/promises';
import path from 'node:path';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { Attribute, isPossibleName, labelEntry, longEntries, shortEntry, shortName } from './entries.ts';
import { ENTRY_BYTES, endMark, type Layout, SECTOR_BYTES, setTableEntry } from './layout.ts';

const MAX_DEPTH = 64;
const MAX_FILE_BYTES = 2 ** 32 - 1;

/** Clusters [first, first + count) hold this. */
export interface Extent {
  readonly first: number;
  readonly count: number;
  /** Of a folder; null: a file of the host. */
  readonly content: Buffer | null;
  /** Relative to the folder that is shown; '' is that itself. */
  readonly path: string;
  readonly bytes: number;
}

export interface Scanned {
  /** By their first cluster. */
  readonly extents: readonly Extent[];
  /** The root folder of FAT12 and FAT16. */
  readonly root: Buffer;
  /** One of the tables. */
  readonly table: Buffer;
  readonly usedClusters: number;
}

interface Item {
  readonly name: string;
  readonly path: string;
  readonly short: Buffer;
  readonly isFolder: boolean;
  readonly bytes: number;
  readonly mtimeMs: number;
  readonly children: Item[];
  first: number;
  count: number;
}

async function readItems(dir: string, relative: string, depth: number): Promise<Item[]> {
  if (depth > MAX_DEPTH)
    throw new BlockError(`vvfat: Folders below '${relative}' are too deep`, { errno: E.EINVAL });
  const names = (await readdir(path.join(dir, relative))).sort();
  const taken = new Set<string>();
  const folded = new Set<string>();
  const items: Item[] = [];
  for (const name of names) {
    const own = path.join(relative, name);
    const stat = await lstat(path.join(dir, own));
    if (!stat.isFile() && !stat.isDirectory()) continue;
    if (!isPossibleName(name) || stat.size > MAX_FILE_BYTES) continue;
    // Names that differ in case only are one name here.
    if (folded.has(name.toLowerCase())) continue;
    folded.add(name.toLowerCase());
    items.push({
      name,
      path: own,
      short: shortName(name, taken),
      isFolder: stat.isDirectory(),
      bytes: stat.isDirectory() ? 0 : stat.size,
      mtimeMs: stat.mtimeMs,
      children: stat.isDirectory() ? await readItems(dir, own, depth + 1) : [],
      first: 0,
      count: 0,
    });
  }
  return items;
}

function entryCount(items: readonly Item[]): number {
  return items.reduce((sum, { name }) => sum + 1 + Math.ceil(name.length / 13), 0);
}

function folderBytes(
  items: readonly Item[],
  parent: number | null,
  own: number,
  label: string | null,
): Buffer {
  const now = items.reduce((latest, { mtimeMs }) => Math.max(latest, mtimeMs), 0);
  const parts: Buffer[] = [];
  if (label !== null) parts.push(labelEntry(label, Date.now()));
  if (parent !== null) {
    for (const [name, cluster] of [
      ['.', own],
      ['..', parent],
    ] as const) {
      const short = Buffer.from(name.padEnd(11), 'latin1');
      parts.push(shortEntry({ short, attributes: Attribute.folder, mtimeMs: now, cluster, bytes: 0 }));
    }
  }
  for (const item of items) {
    const attributes = item.isFolder ? Attribute.folder : Attribute.archive;
    const { short, mtimeMs, first, bytes } = item;
    parts.push(
      longEntries(item.name, short),
      shortEntry({ short, attributes, mtimeMs, cluster: first, bytes }),
    );
  }
  return Buffer.concat(parts);
}

/** Reads the folder `dir` and lays it out. */
export async function scanFolder(dir: string, layout: Layout, label: string): Promise<Scanned> {
  const items = await readItems(dir, '', 0);
  const { clusterBytes, clusters, fatType } = layout;
  let next = 2;
  const take = (bytes: number): { readonly first: number; readonly count: number } => {
    const count = Math.ceil(bytes / clusterBytes);
    const first = count === 0 ? 0 : next;
    next += count;
    if (next > clusters + 2) {
      const megabytes = ((layout.sectors * SECTOR_BYTES) / 1024 / 1024).toFixed(2);
      throw new BlockError(`Directory does not fit in FAT${fatType} (capacity ${megabytes} MB)`, {
        errno: E.EINVAL,
      });
    }
    return { first, count };
  };
  const place = (list: readonly Item[]): void => {
    for (const item of list) {
      const bytes = item.isFolder ? Math.max(1, (entryCount(item.children) + 2) * ENTRY_BYTES) : item.bytes;
      Object.assign(item, take(bytes));
      place(item.children);
    }
  };
  const rootBytes = (entryCount(items) + 1) * ENTRY_BYTES;
  const root = fatType === 32 ? take(rootBytes) : { first: 0, count: 0 };
  if (fatType !== 32 && rootBytes > layout.rootSectors * SECTOR_BYTES)
    throw new BlockError('Too many entries in root directory', { errno: E.EINVAL });
  place(items);
  const content = folderBytes(items, null, 0, label);
  const extents: Extent[] = [];
  if (fatType === 32) extents.push({ ...root, content, path: '', bytes: content.length });
  collect(items, 0, extents);
  const table = Buffer.alloc(layout.tableSectors * SECTOR_BYTES);
  setTableEntry(layout, table, 0, endMark(layout) - 7 - (layout.isFloppy ? 8 : 0));
  setTableEntry(layout, table, 1, endMark(layout));
  for (const { first, count } of extents) {
    for (let i = 0; i < count; i++)
      setTableEntry(layout, table, first + i, i === count - 1 ? endMark(layout) : first + i + 1);
  }
  return { extents, root: content, table, usedClusters: next - 2 };
}

function collect(items: readonly Item[], parent: number, extents: Extent[]): void {
  for (const item of items) {
    const content = item.isFolder ? folderBytes(item.children, parent, item.first, null) : null;
    extents.push({ first: item.first, count: item.count, content, path: item.path, bytes: item.bytes });
    collect(item.children, item.first, extents);
  }
}
