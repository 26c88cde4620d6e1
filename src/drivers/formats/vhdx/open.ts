/** Opening VHDX images: headers, log, regions, metadata, parent. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { nodeFilename } from '../../../block/open/filename.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createSpace } from '../shared/append-space.ts';
import { createFlatTable } from '../shared/flat-table.ts';
import { createFound } from '../shared/mapped-image.ts';
import { chooseParent, portablePath, withBaseNames } from '../shared/parent-paths.ts';
import { TableCache } from '../shared/table-cache.ts';
import { readBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import {
  chooseHeader,
  chunkRatio,
  Guid,
  guid,
  HEADER_AT,
  HEADER_BYTES,
  type Header,
  invalid,
  METADATA_TABLE_BYTES,
  type Metadata,
  MIB,
  parseLocator,
  parseMetadata,
  parseMetadataTable,
  parseRegions,
  REGIONS_AT,
  REGIONS_BYTES,
  type Region,
  type Regions,
} from './layout.ts';
import { LOG_SECTOR_BYTES, type Replay } from './log.ts';
import { decodeEntry, type VhdxNode, type VhdxState } from './map.ts';
import { VHDX_SIGNATURE } from './probe.ts';
import { loadLog, patch, preload, replayInFile } from './replay.ts';

/** Bitmaps in memory, in pieces of 4 KiB. */
const MAX_BITMAP_PIECES = 1024;

/** What has been read of the image. */
interface Parts {
  readonly header: Header;
  readonly replay: Replay | null;
  readonly regions: Regions;
  readonly metadata: Metadata;
  readonly locator: ReadonlyMap<string, string> | null;
}

async function readParts(file: BlockChild, guard: GraphReadGuard): Promise<Parts> {
  const id = await readBytes(file, guard, 0, 8);
  if (id.toString('latin1') !== VHDX_SIGNATURE) throw invalid('Invalid VHDX file identifier');
  const copies = await Promise.all(HEADER_AT.map((at) => readBytes(file, guard, at, HEADER_BYTES)));
  const header = chooseHeader(copies);
  const replay = await loadLog(file, guard, header);
  const read = async (offset: number, bytes: number): Promise<Buffer> => {
    const data = await readBytes(file, guard, offset, bytes);
    patch(replay, offset, data);
    return data;
  };
  const regions = await readRegions(read);
  const table = parseMetadataTable(await read(regions.metadata.offset, METADATA_TABLE_BYTES));
  const values = new Map<string, Buffer>();
  for (const [key, { offset, bytes }] of table.items) {
    if (offset + bytes > regions.metadata.bytes) throw invalid('Metadata of the image are invalid');
    values.set(key, await read(regions.metadata.offset + offset, bytes));
  }
  const metadata = parseMetadata(table, (key, bytes) => {
    const value = values.get(key)!;
    if (value.length < bytes) throw invalid('Metadata of the image are invalid');
    return value;
  });
  const locator = metadata.hasParent ? (values.get(Guid.parentLocator) ?? null) : null;
  return { header, replay, regions, metadata, locator: locator === null ? null : parseLocator(locator) };
}

async function readRegions(read: (offset: number, bytes: number) => Promise<Buffer>): Promise<Regions> {
  for (const at of REGIONS_AT) {
    const regions = parseRegions(await read(at, REGIONS_BYTES));
    if (regions !== null) return regions;
  }
  throw invalid('No valid region table found');
}

function checkTable({ metadata, regions }: Parts): void {
  const blocks = Math.ceil(metadata.diskBytes / metadata.blockBytes);
  const ratio = chunkRatio(metadata);
  const chunks = Math.ceil(blocks / ratio);
  const entries = metadata.hasParent
    ? chunks * (ratio + 1)
    : blocks + Math.floor(Math.max(0, blocks - 1) / ratio);
  if (entries * 8 > regions.bat.bytes) throw invalid('The block allocation table is too small');
}

export async function open(node: VhdxNode, context: OpenContext): Promise<VhdxState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const { graphLock } = node.layer;
  const parts = await graphLock.withRead((guard) => readParts(file, guard));
  checkTable(parts);
  const { metadata, regions, header, replay } = parts;
  if (metadata.hasParent) {
    if (!context.readOnly && !context.autoReadOnly)
      throw new BlockError('vhdx: Differencing images can only be opened read-only', { errno: E.ENOTSUP });
    node.readOnly = true;
  }
  const { bat } = regions;
  if (bat.offset > file.node.totalBytes)
    throw invalid('The block allocation table is behind the end of the file');
  const bitmaps = new TableCache(LOG_SECTOR_BYTES, MAX_BITMAP_PIECES);
  const ratio = chunkRatio(metadata);
  const state: VhdxState = {
    file,
    header,
    metadata,
    chunkRatio: ratio,
    tableOffset: bat.offset,
    table: createFlatTable(file, {
      startBytes: bat.offset,
      entryBytes: 8,
      blockBytes: metadata.blockBytes,
      count: Math.ceil(metadata.diskBytes / metadata.blockBytes),
      gapEvery: ratio,
      decode: (view, at) => decodeEntry(state, view, at),
    }),
    bitmaps: { child: file, cache: bitmaps, endBytes: Number.POSITIVE_INFINITY },
    fileBytes: Math.max(file.node.totalBytes, replay?.fileBytes ?? 0),
    space: null,
    ownFrom: Number.POSITIVE_INFINITY,
    logAt: 0,
    logSequence: (replay?.sequence ?? 0n) + 1n,
    marked: false,
    marking: null,
    parentName: null,
    replay,
    repaired: false,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
  await loadReplayed(state, bat);
  if (parts.locator !== null || metadata.hasParent) await openParent(node, context, state, parts);
  return state;
}

async function loadReplayed({ replay, table, bitmaps }: VhdxState, bat: Region): Promise<void> {
  if (replay === null) return;
  const end = bat.offset + bat.bytes;
  await preload(table.tables.cache, replay.writes, bat.offset, end);
  const others = replay.writes.filter(({ offset }) => offset < bat.offset || offset >= end);
  await preload(bitmaps.cache, others, MIB, Number.POSITIVE_INFINITY);
}

/** A differencing image without its parent would show wrong data, so there is no way around it. */
async function openParent(
  node: VhdxNode,
  context: OpenContext,
  state: VhdxState,
  { locator }: Parts,
): Promise<void> {
  const paths = ['relative_path', 'absolute_win32_path', 'volume_path']
    .map((key) => locator?.get(key))
    .filter((path) => path !== undefined && path !== '')
    .map((path) => portablePath(path!));
  state.parentName = chooseParent(node, withBaseNames(paths));
  const { parentName } = state;
  const parent = await context.openBacking(
    parentName === null ? null : { filename: parentName, format: 'vhdx' },
  );
  if (parent === null) {
    if (context.purpose === 'info') return;
    throw invalid('vhdx: Differencing image without its parent');
  }
  const { node: below } = parent;
  if (below.driver.name !== 'vhdx') return;
  const own = (below.state as VhdxState).header.dataGuid.toString('hex');
  const links = ['parent_linkage', 'parent_linkage2'].flatMap((key) => locator?.get(key) ?? []);
  const isLink = (link: string): boolean => /^\{?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?$/i.test(link);
  if (links.some((link) => isLink(link) && guid(link) === own)) return;
  throw invalid(
    `vhdx: '${nodeFilename(below)}' is not the parent of this differencing image, or was changed since`,
  );
}

/** Once the image may be written to: what the log held goes to its place, and new blocks to the end of the file. */
export async function startWriting(node: VhdxNode): Promise<void> {
  const { state } = node;
  if (node.readOnly) return;
  await node.layer.graphLock.withRead((guard) => replayInFile(node, guard));
  if (state.space !== null) return;
  const { totalBytes } = state.file.node;
  state.ownFrom = Math.ceil(totalBytes / MIB) * MIB;
  state.space = createSpace(state.file, state.ownFrom);
}
