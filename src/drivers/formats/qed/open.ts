/** Opening qed images, and what has to be written when they become writable. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BackingName } from '../../../block/contract/image.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createSpace } from '../shared/append-space.ts';
import { createFound } from '../shared/mapped-image.ts';
import { readBytes, viewOf } from '../shared/table-io.ts';
import { createTwoLevel, readEntry } from '../shared/two-level.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { check } from './check.ts';
import { Feature, HEADER_BYTES, parseHeader, type QedHeader, tableEntries } from './header.ts';
import { decodeEntry, isPlace, type QedNode, type QedState } from './map.ts';
import { needsCheck } from './need-check.ts';

const MIN_FILE_BYTES = 512;

export async function open(node: QedNode, context: OpenContext): Promise<QedState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const state = await node.layer.graphLock.withRead((guard) => load(file, guard, context));
  await context.openBacking(state.backing);
  return state;
}

/** Entries of the L1 table that a disk of `size` bytes needs. */
export function l1EntriesFor(header: QedHeader, size: number): number {
  const entries = tableEntries(header.clusterBytes, header.tableClusters);
  return Math.ceil(size / (entries * header.clusterBytes));
}

export async function readL1(file: BlockChild, guard: GraphReadGuard, header: QedHeader, size: number) {
  return viewOf(await readBytes(file, guard, header.l1Offset, l1EntriesFor(header, size) * 8));
}

async function load(file: BlockChild, guard: GraphReadGuard, context: OpenContext): Promise<QedState> {
  const fileBytes = file.node.totalBytes;
  if (fileBytes < MIN_FILE_BYTES) throw new BlockError('Image not in QED format', { errno: E.EINVAL });
  const header = parseHeader(await readBytes(file, guard, 0, HEADER_BYTES), fileBytes);
  const { clusterBytes } = header;
  const space = createSpace(file, Math.ceil(fileBytes / clusterBytes) * clusterBytes);
  const table = createTwoLevel(file, await readL1(file, guard, header, header.size), {
    blockBytes: clusterBytes,
    l2Entries: tableEntries(clusterBytes, header.tableClusters),
    l1Offset: header.l1Offset,
    littleEndian: true,
    decode: (view, at) => decodeEntry(readEntry(view, at, true), clusterBytes, space.end),
    checkTable(offset) {
      if (isPlace(offset, clusterBytes, space.end)) return;
      throw new BlockError(`Invalid QED image: L2 table offset 0x${BigInt(offset).toString(16)}`, {
        errno: E.EIO,
      });
    },
  });
  return {
    file,
    header,
    purpose: context.purpose,
    backing: await readBackingName(file, guard, header),
    table,
    space,
    checkTimer: null,
    lastAllocationMs: 0,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

async function readBackingName(
  file: BlockChild,
  guard: GraphReadGuard,
  header: QedHeader,
): Promise<BackingName | null> {
  if ((header.features & Feature.backingFile) === 0) return null;
  const name = await readBytes(file, guard, header.backingNameOffset, header.backingNameBytes);
  const format = (header.features & Feature.backingRaw) !== 0 ? 'raw' : null;
  return { filename: name.toString('utf8'), format };
}

/** Puts an image right that was not closed, before anybody writes to it. */
export async function afterOpen(node: QedNode): Promise<void> {
  if (node.readOnly || node.state.purpose !== 'io' || !needsCheck(node)) return;
  await node.layer.graphLock.withRead(async (guard) => {
    const request = { fixErrors: true, fixLeaks: true, report: () => undefined };
    const result = await check(node, guard, request);
    if (result.corruptions > result.corruptionsFixed)
      throw new BlockError('Invalid QED image: it could not be repaired', { errno: E.EINVAL });
  });
}
