/**
 * From the disk back to a tree: what the guest has made of the file system, if it is one at the moment. Everything is
 * checked; a disk in the middle of a change, or one that somebody has damaged, is an error and changes nothing.
 */

import { readEntries } from './entries.ts';
import { type Layout, SECTOR_BYTES, tableEntry } from './layout.ts';

export interface TreeFile {
  readonly isFolder: boolean;
  readonly bytes: number;
  /** Clusters in order. */
  readonly chain: readonly number[];
}

/** By path, folders before what is in them. */
export type Tree = ReadonlyMap<string, TreeFile>;

export type ReadDisk = (offset: number, bytes: number) => Promise<Buffer>;

const MAX_DEPTH = 64;
const MAX_ENTRIES = 65536;

/** Why the disk is no file system at the moment. */
export class Inconsistent extends Error {}

interface Walk {
  readonly layout: Layout;
  readonly read: ReadDisk;
  readonly table: Buffer;
  readonly used: Set<number>;
  readonly tree: Map<string, TreeFile>;
}

export function clusterOffset(layout: Layout, cluster: number): number {
  return (layout.start + layout.dataStart) * SECTOR_BYTES + (cluster - 2) * layout.clusterBytes;
}

function chainOf({ layout, table, used }: Walk, first: number, name: string): number[] {
  const chain: number[] = [];
  const last = layout.fatType === 12 ? 0xff8 : layout.fatType === 16 ? 0xfff8 : 0x0ffffff8;
  for (let cluster = first; cluster < last; cluster = tableEntry(layout, table, cluster)) {
    if (cluster < 2 || cluster > layout.clusters + 1)
      throw new Inconsistent(`'${name}' has a cluster ${cluster}`);
    if (used.has(cluster)) throw new Inconsistent(`'${name}' shares cluster ${cluster} with another file`);
    used.add(cluster);
    chain.push(cluster);
  }
  return chain;
}

async function readChain({ layout, read }: Walk, chain: readonly number[]): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (const cluster of chain) parts.push(await read(clusterOffset(layout, cluster), layout.clusterBytes));
  return Buffer.concat(parts);
}

async function walk(state: Walk, content: Buffer, folder: string, depth: number): Promise<void> {
  if (depth > MAX_DEPTH) throw new Inconsistent(`folders below '${folder}' are too deep`);
  let entries: ReturnType<typeof readEntries>;
  try {
    entries = readEntries(content);
  } catch (error) {
    throw new Inconsistent(`in '${folder}' there is ${(error as Error).message}`);
  }
  const seen = new Set<string>();
  for (const { name, isFolder, cluster, bytes } of entries) {
    const own = folder === '' ? name : `${folder}/${name}`;
    if (seen.has(name.toLowerCase())) throw new Inconsistent(`'${own}' is there twice`);
    seen.add(name.toLowerCase());
    const chain = cluster === 0 ? [] : chainOf(state, cluster, own);
    const needed = Math.ceil(bytes / state.layout.clusterBytes);
    if (!isFolder && chain.length !== needed)
      throw new Inconsistent(`'${own}' has ${bytes} bytes, and ${chain.length} clusters`);
    if (isFolder && chain.length === 0) throw new Inconsistent(`folder '${own}' has no cluster`);
    if (state.tree.size >= MAX_ENTRIES) throw new Inconsistent('too many files');
    state.tree.set(own, { isFolder, bytes: isFolder ? 0 : bytes, chain });
    if (isFolder) await walk(state, await readChain(state, chain), own, depth + 1);
  }
}

/** Reads the file system. `reserved`: the sectors in front of the tables as they were made. */
export async function readTree(layout: Layout, read: ReadDisk, reserved: Buffer): Promise<Tree> {
  const begin = layout.start * SECTOR_BYTES;
  const bootSector = await read(begin, SECTOR_BYTES);
  // Its state byte may change; what says where things are must not.
  if (!bootSector.subarray(11, 37).equals(reserved.subarray(11, 37)))
    throw new Inconsistent('the boot sector says something else than it did');
  const tableBytes = layout.tableSectors * SECTOR_BYTES;
  const tables = await read(begin + layout.tableStart * SECTOR_BYTES, 2 * tableBytes);
  const table = tables.subarray(0, tableBytes);
  const significant = Math.ceil(((layout.clusters + 2) * layout.fatType) / 8);
  // The first two entries hold state.
  const from = layout.fatType === 12 ? 3 : layout.fatType / 4;
  if (!table.subarray(from, significant).equals(tables.subarray(tableBytes + from, tableBytes + significant)))
    throw new Inconsistent('the two allocation tables differ');
  const state: Walk = { layout, read, table, used: new Set(), tree: new Map() };
  const root =
    layout.fatType === 32
      ? await readChain(state, chainOf(state, 2, ''))
      : await read(begin + layout.rootStart * SECTOR_BYTES, layout.rootSectors * SECTOR_BYTES);
  await walk(state, root, '', 0);
  return state.tree;
}
