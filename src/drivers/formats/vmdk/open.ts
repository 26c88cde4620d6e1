/** Opening VMDK images: the descriptor, wherever it is, the extents it names, and the image below. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { nodeFilename } from '../../../block/open/filename.ts';
import { placeOf } from '../../../block/open/image-name.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createSpace } from '../shared/append-space.ts';
import { createFound } from '../shared/mapped-image.ts';
import { chooseParent, portablePath, withBaseNames } from '../shared/parent-paths.ts';
import { readBytes } from '../shared/table-io.ts';
import { createWriteBack } from '../shared/write-back.ts';
import {
  checkCreateType,
  type Descriptor,
  descriptorText,
  MAX_DESCRIPTOR_BYTES,
  NO_PARENT_CID,
  parseDescriptor,
  parseExtents,
} from './descriptor.ts';
import { openExtent, openSeSparse, openSparse, readHosted } from './extents.ts';
import { isSeSparse } from './probe.ts';
import { isCowd, isHosted, parseCowd, SECTOR_BYTES } from './sparse-header.ts';
import type { Extent, VmdkNode, VmdkState } from './state.ts';

/** What is in the image's own file. */
interface Start {
  readonly descriptor: Descriptor;
  readonly descriptorAt: number | null;
  /** The file is the one extent; null: the descriptor names them. */
  readonly extent: Omit<Extent, 'start' | 'type'> | null;
}

const NO_DESCRIPTOR: Descriptor = {
  text: '',
  cid: 0,
  parentCid: NO_PARENT_CID,
  createType: '',
  parentName: null,
};

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

export async function open(node: VmdkNode, context: OpenContext): Promise<VmdkState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const withRead = <T>(read: (guard: GraphReadGuard) => Promise<T>): Promise<T> =>
    node.layer.graphLock.withRead(read);
  const start = await withRead((guard) => readStart(file, guard));
  const extents: Extent[] = [];
  let total = 0;
  if (start.extent === null) {
    checkCreateType(start.descriptor.createType);
    const lines = parseExtents(start.descriptor.text);
    const place = placeOf(file.node) ?? invalidPlace(file);
    for (const [index, line] of lines.entries()) {
      const part = await openExtent(context, withRead, line, {
        place,
        index,
        share: lines.length,
      });
      extents.push({ ...part, start: total, type: line.type });
      total += part.bytes;
      if (!(total <= 2 ** 53)) throw new BlockError('File too large', { errno: E.EFBIG });
    }
  } else {
    extents.push({ ...start.extent, start: 0, type: '' });
    total = start.extent.bytes;
  }
  const state: VmdkState = {
    file,
    purpose: context.purpose,
    descriptor: start.descriptor,
    descriptorAt: start.descriptorAt,
    extents: extents.filter(({ bytes }) => bytes > 0),
    totalBytes: total,
    last: 0,
    parentMismatch: false,
    parentName: null,
    cidChanged: false,
    changingCid: null,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
  await openParent(node, context, state);
  return state;
}

function invalidPlace(file: BlockChild): never {
  throw invalid(`Cannot use relative extent paths for '${nodeFilename(file.node)}'`);
}

async function readStart(file: BlockChild, guard: GraphReadGuard): Promise<Start> {
  const start = await readBytes(file, guard, 0, SECTOR_BYTES);
  if (isCowd(start)) {
    const extent = await openSparse(file, guard, parseCowd(start), true, 1);
    return { descriptor: NO_DESCRIPTOR, descriptorAt: null, extent };
  }
  if (isSeSparse(start)) {
    const extent = await openSeSparse(file, guard, 1);
    return { descriptor: NO_DESCRIPTOR, descriptorAt: null, extent };
  }
  if (!isHosted(start)) {
    const bytes = Math.min(file.node.totalBytes, MAX_DESCRIPTOR_BYTES);
    const text = descriptorText(await readBytes(file, guard, 0, bytes));
    if (!text.includes('createType')) throw invalid('invalid VMDK image descriptor');
    return { descriptor: parseDescriptor(text), descriptorAt: 0, extent: null };
  }
  const header = await readHosted(file, guard, start);
  const { descriptorOffset: at, descriptorBytes } = header;
  const bytes = Math.min(descriptorBytes, MAX_DESCRIPTOR_BYTES, Math.max(0, file.node.totalBytes - at));
  const text = at === 0 || bytes === 0 ? '' : descriptorText(await readBytes(file, guard, at, bytes));
  const descriptor = text === '' ? NO_DESCRIPTOR : parseDescriptor(text);
  if (header.capacitySectors === 0 && text !== '') return { descriptor, descriptorAt: at, extent: null };
  const extent = await openSparse(file, guard, header, true, 1);
  return { descriptor, descriptorAt: text === '' ? null : at, extent };
}

/**
 * The name of the parent: as the descriptor has it; where that leads nowhere, as a path of Windows may be meant here, or
 * beside the image.
 */
function parentNameOf(node: VmdkNode, name: string): string {
  return chooseParent(node, [name, ...withBaseNames([portablePath(name)])]) ?? name;
}

async function openParent(node: VmdkNode, context: OpenContext, state: VmdkState): Promise<void> {
  const { parentName, parentCid } = state.descriptor;
  const hasParent = parentCid !== NO_PARENT_CID && parentName !== null && parentName !== '';
  if (hasParent) state.parentName = parentNameOf(node, parentName);
  const parent = await context.openBacking(
    state.parentName === null ? null : { filename: state.parentName, format: 'vmdk' },
  );
  if (parent === null || parent.node.driver.name !== 'vmdk') return;
  state.parentMismatch = (parent.node.state as VmdkState).descriptor.cid !== parentCid;
}

/** Once the image may be written to: new grains go to the ends of the extents' files, as long as these are now. */
export async function startWriting(node: VmdkNode): Promise<void> {
  if (node.readOnly) return;
  for (const { sparse, child } of node.state.extents) {
    if (sparse === null || !sparse.writable || sparse.space !== null) continue;
    const fileEnd = Math.ceil(child!.node.totalBytes / SECTOR_BYTES) * SECTOR_BYTES;
    sparse.ownFrom = sparse.stream?.overheadBytes ?? fileEnd;
    sparse.space = createSpace(child!, sparse.ownFrom);
  }
}
