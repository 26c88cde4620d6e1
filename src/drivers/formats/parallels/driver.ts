/**
 * parallels: expandable images of Parallels, both kinds; the driver record. The layout is header.ts.
 *
 * Beyond the original: clusters that two entries name are found by check, and such images are not opened for writing;
 * `check -r` clears entries that point outside the file; zeroes punch holes.
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { readBytes } from '../shared/table-io.ts';
import { closeMapped } from '../shared/write-back.ts';
import { check } from './check.ts';
import { creation } from './create.ts';
import { loadExtension } from './extension.ts';
import { HEADER_BYTES, parseHeader } from './header.ts';
import { createState, map, mark, type ParallelsNode, type ParallelsState, startWriting } from './map.ts';
import { probeParallels } from './probe.ts';

const shared = mappedCallbacks(map);

async function open(node: ParallelsNode, context: OpenContext): Promise<ParallelsState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const bytes = await node.layer.graphLock.withRead((guard) => readBytes(file, guard, 0, HEADER_BYTES));
  const state = createState(file, parseHeader(bytes, file.node.totalBytes), context.purpose);
  if (!node.readOnly && context.purpose === 'io') checkClosed(state);
  node.state = state;
  // Bitmaps are as long as the disk.
  node.totalBytes = state.header.diskBytes;
  if (node.readOnly && context.purpose === 'io')
    await node.layer.graphLock.withRead((guard) => loadExtension(node, guard));
  return state;
}

function checkClosed({ header, marked }: ParallelsState): void {
  if (!header.inUse || marked) return;
  throw new BlockError('parallels: Image was not closed correctly; cannot be opened read/write', {
    errno: E.EACCES,
  });
}

async function prepareToWrite(node: ParallelsNode): Promise<void> {
  const { purpose, marked } = node.state;
  if (node.readOnly || purpose === 'check' || marked) return;
  await node.layer.graphLock.withRead((guard) => startWriting(node, guard));
}

/** Takes the mark of an open image away, when everything else is on the disk. */
async function unmark(node: ParallelsNode): Promise<void> {
  if (node.readOnly || !node.state.marked) return;
  await node.layer.graphLock.withRead((guard) => mark(node, guard, false));
}

export const parallels: BlockDriver<ParallelsState> = {
  name: 'parallels',
  ...shared,
  // Without a place a cluster reads as zeroes, or as what an image below has where this one is put on top of it.
  supportsBacking: true,
  probe: probeParallels,
  creation,
  open,
  afterOpen: prepareToWrite,
  async close(node) {
    await closeMapped(map, node);
    await unmark(node);
  },
  async reopenPrepare(node, context) {
    if (node.readOnly && !context.settings.readOnly) checkClosed(node.state);
    await shared.reopenPrepare(node, context);
    if (context.settings.readOnly) await unmark(node);
    return null;
  },
  reopenCommit: () => undefined,
  afterReopen: prepareToWrite,
  childPermissions: formatChildPermissions,
  check,
  getLength: async ({ state }) => state.header.diskBytes,
  // As the original's, which has nothing to tell either.
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
};
