/**
 * qed: QEMU's enhanced disk, which qcow2 has taken the place of; the driver record. The layout is header.ts.
 *
 * Blocks are mapped by the shared code (mapped-image.ts, two-level.ts): data is on the disk before a table names it, so
 * a crash leaks clusters at most. The need-check flag is kept all the same, for whoever opens the image next.
 * Beyond the original: clusters that two entries name are found by check, and zeroes punch holes.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BackingName, PreallocMode } from '../../../block/contract/image.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { Place } from '../shared/mapped-image.ts';
import { tryLookup } from '../shared/mapped-read.ts';
import { writeBytes } from '../shared/table-io.ts';
import { closeMapped, flushMapped } from '../shared/write-back.ts';
import { check } from './check.ts';
import { creation } from './create.ts';
import { checkShape, Feature, HEADER_BYTES, MAX_BACKING_NAME_BYTES } from './header.ts';
import { map, type QedNode, type QedState } from './map.ts';
import { clearNeedCheck, needsCheck, setNeedCheck, stopTimer, writeHeader } from './need-check.ts';
import { afterOpen, l1EntriesFor, open, readL1 } from './open.ts';
import { probeQed } from './probe.ts';

const shared = mappedCallbacks(map);

/** Whether a write goes to clusters that are there, or the flag is set already. */
function mayWrite(node: QedNode, guard: GraphReadGuard, offset: number, bytes: number): boolean {
  if (needsCheck(node)) return true;
  const { found } = node.state;
  return tryLookup(map, node, guard, offset, bytes) && found.kind === Place.data && found.bytes === bytes;
}

async function truncate(
  node: QedNode,
  guard: GraphReadGuard,
  length: number,
  _exact: boolean,
  prealloc: PreallocMode,
): Promise<void> {
  const { header, table, file } = node.state;
  if (prealloc !== 'off')
    throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
  if (length % 512 !== 0) throw new BlockError('Invalid image size specified', { errno: E.EINVAL });
  try {
    checkShape(header.clusterBytes, header.tableClusters, length);
  } catch {
    throw new BlockError('Invalid image size specified', { errno: E.EINVAL });
  }
  if (length < header.size)
    throw new BlockError('Shrinking images is currently not supported', { errno: E.ENOTSUP });
  // The L1 table is as long as it can get on the disk; what was in memory is what the old length needed.
  await flushMapped(map, node, guard);
  const entries = l1EntriesFor(header, length);
  if (entries > table.l1Entries) {
    table.l1 = await readL1(file, guard, header, length);
    table.l1Entries = entries;
  }
  const before = header.size;
  header.size = length;
  try {
    await writeHeader(node, guard);
  } catch (error) {
    header.size = before;
    throw error;
  }
}

async function changeBackingFile(
  node: QedNode,
  guard: GraphReadGuard,
  backing: BackingName | null,
): Promise<void> {
  const { header, file } = node.state;
  const name = Buffer.from(backing?.filename ?? '');
  if (name.length > MAX_BACKING_NAME_BYTES) throw ioError(E.EINVAL);
  if (HEADER_BYTES + name.length > header.headerClusters * header.clusterBytes) throw ioError(E.ENOSPC);
  const hasName = name.length > 0;
  if (hasName) await writeBytes(file, guard, HEADER_BYTES, name);
  header.features &= ~(Feature.backingFile | Feature.backingRaw);
  if (hasName) header.features |= Feature.backingFile;
  if (hasName && backing?.format === 'raw') header.features |= Feature.backingRaw;
  header.backingNameOffset = hasName ? HEADER_BYTES : 0;
  header.backingNameBytes = name.length;
  node.state.backing = hasName ? backing : null;
  await writeHeader(node, guard);
}

export const qed: BlockDriver<QedState> = {
  name: 'qed',
  ...shared,
  supportsBacking: true,
  exclusiveTruncate: true,
  probe: probeQed,
  creation,
  open,
  afterOpen,
  async close(node) {
    stopTimer(node);
    await closeMapped(map, node);
    if (!node.readOnly) await node.layer.graphLock.withRead((guard) => clearNeedCheck(node, guard));
  },
  async reopenPrepare(node, context) {
    await shared.reopenPrepare(node, context);
    if (!node.readOnly) await node.layer.graphLock.withRead((guard) => clearNeedCheck(node, guard));
    return null;
  },
  reopenCommit: stopTimer,
  afterReopen: afterOpen,
  childPermissions: formatChildPermissions,
  backingName: ({ state }) => state.backing,
  tryPwritev: (node, guard, offset, bytes, vec, short) =>
    mayWrite(node, guard, offset, bytes) && shared.tryPwritev!(node, guard, offset, bytes, vec, short),
  async pwritev(node, guard, offset, bytes, vec, flags) {
    if (!mayWrite(node, guard, offset, bytes)) await setNeedCheck(node, guard);
    await shared.pwritev!(node, guard, offset, bytes, vec, flags);
  },
  async pwriteZeroes(node, guard, offset, bytes, flags) {
    if (!mayWrite(node, guard, offset, bytes)) await setNeedCheck(node, guard);
    await shared.pwriteZeroes!(node, guard, offset, bytes, flags);
  },
  truncate,
  check,
  changeBackingFile,
  getLength: async ({ state }) => state.header.size,
  getInfo: async (node) => ({
    clusterSizeBytes: node.state.header.clusterBytes,
    isDirty: needsCheck(node),
  }),
};
