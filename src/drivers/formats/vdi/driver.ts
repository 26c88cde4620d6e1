/**
 * vdi: images of VirtualBox, dynamic and static; the driver record. The layout is header.ts. No options of its own.
 *
 * Beyond the original: blocks of other sizes than 1 MiB are read and written, zeroes punch holes, an image that was
 * cut off gives errors instead of zeroes, one with two blocks in one place is not opened for writing, and `check -r`
 * puts the count of blocks right.
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { readBytes } from '../shared/table-io.ts';
import { check } from './check.ts';
import { creation } from './create.ts';
import { HEADER_BYTES, parseHeader } from './header.ts';
import { createState, map, startWriting, type VdiNode, type VdiState } from './map.ts';
import { probeVdi } from './probe.ts';

async function open(node: VdiNode, context: OpenContext): Promise<VdiState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const sector = await node.layer.graphLock.withRead((guard) => readBytes(file, guard, 0, HEADER_BYTES));
  return createState(file, parseHeader(sector, file.node.totalBytes), context.purpose);
}

async function prepareToWrite(node: VdiNode): Promise<void> {
  if (node.readOnly || node.state.purpose === 'check' || node.state.space !== null) return;
  await node.layer.graphLock.withRead((guard) => startWriting(node, guard));
}

export const vdi: BlockDriver<VdiState> = {
  name: 'vdi',
  ...mappedCallbacks(map),
  probe: probeVdi,
  creation,
  open,
  afterOpen: prepareToWrite,
  reopenCommit: () => undefined,
  afterReopen: prepareToWrite,
  childPermissions: formatChildPermissions,
  check,
  getLength: async ({ state }) => state.header.diskBytes,
  getInfo: async ({ state }) => ({ clusterSizeBytes: state.header.blockBytes }),
};
