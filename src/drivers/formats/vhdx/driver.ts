/**
 * vhdx: images of Hyper-V, dynamic, fixed and differencing; the driver record. The layout is layout.ts, the log log.ts.
 *
 * Beyond the original: differencing images are read, and refused without their parent; an image with a log to be
 * replayed can be opened read-only, the replay being in memory; block status; zeroes punch holes; check looks at the
 * block allocation table.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { co } from '../../../block/io/callbacks.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { check } from './check.ts';
import { creation } from './create.ts';
import { map, markWritten, NO_LOG, type VhdxNode, type VhdxState, writeHeader } from './map.ts';
import { open, startWriting } from './open.ts';
import { probeVhdx } from './probe.ts';

const mapped = mappedCallbacks(map);

/** The log is empty, and says so: all that it described is in its place. */
async function emptyLog(node: VhdxNode): Promise<void> {
  if (node.readOnly || node.state.header.logGuid.equals(NO_LOG) || node.state.replay !== null) return;
  await node.layer.graphLock.withRead(async (guard) => {
    await co.flush(node.state.file.node, guard);
    await writeHeader(node, guard, { logGuid: NO_LOG });
  });
}

export const vhdx: BlockDriver<VhdxState> = {
  name: 'vhdx',
  ...mapped,
  supportsBacking: true,
  probe: probeVhdx,
  creation,
  open,
  afterOpen: startWriting,
  async reopenPrepare(node, context) {
    await mapped.reopenPrepare(node, context);
    await emptyLog(node);
    return null;
  },
  reopenCommit({ state }) {
    state.marked = false;
  },
  afterReopen: startWriting,
  async close(node) {
    await mapped.close(node);
    await emptyLog(node);
  },
  childPermissions: formatChildPermissions,
  refreshLimits({ state }, limits) {
    limits.requestAlignment = Math.max(
      limits.requestAlignment,
      state.metadata.sectorBytes === 4096 ? 512 : 1,
    );
  },
  // The first write changes the header, which takes I/O.
  tryPwritev: (node, guard, offset, bytes, vec, short) =>
    node.state.marked && mapped.tryPwritev!(node, guard, offset, bytes, vec, short),
  async pwritev(node, guard, offset, bytes, vec, flags) {
    if (!node.state.marked) await markWritten(node, guard);
    return mapped.pwritev!(node, guard, offset, bytes, vec, flags);
  },
  async pwriteZeroes(node, guard, offset, bytes, flags) {
    if (!node.state.marked) await markWritten(node, guard);
    return mapped.pwriteZeroes!(node, guard, offset, bytes, flags);
  },
  async pdiscard(node, guard, offset, bytes) {
    if (!node.state.marked) await markWritten(node, guard);
    return mapped.pdiscard!(node, guard, offset, bytes);
  },
  check,
  backingName: ({ state }) =>
    state.parentName === null ? null : { filename: state.parentName, format: 'vhdx' },
  getLength: async ({ state }) => state.metadata.diskBytes,
  getInfo: async ({ state }) => ({ clusterSizeBytes: state.metadata.blockBytes }),
};
