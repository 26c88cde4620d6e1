/**
 * qcow2: the driver record. What each callback does is in the file it comes from; the folder's README.md tells the
 * format, the invariants and who waits for whom.
 */

import {
  type BackingName,
  type BlockDriver,
  type BlockLimits,
  type BlockStatus,
  Req,
  Status,
} from '../../../block/driver.ts';
import type { GraphReadGuard } from '../../../block/graph-lock.ts';
import { formatChildPermissions } from '../../../block/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { amend } from './amend.ts';
import { bitmaps, storeBitmaps } from './bitmaps.ts';
import { check } from './check.ts';
import { pwritevCompressed } from './compressed.ts';
import { copyRangeFrom, copyRangeTo, copyRangeVia } from './copy-range.ts';
import { checkAlive, toRequestError } from './corruption.ts';
import { creation } from './create-options.ts';
import { pdiscard, pwriteZeroes } from './discard.ts';
import { exclusive } from './exclusive.ts';
import { isQcow2 } from './header.ts';
import { specificInfo } from './info.ts';
import { Autoclear, Incompat } from './layout.ts';
import { lookup } from './mapping.ts';
import { measure } from './measure.ts';
import { writeHeader } from './metadata-io.ts';
import { satisfy } from './needs.ts';
import { afterOpen, open, reloadTables, stopTimers } from './open.ts';
import { MUTABLE_OPTIONS } from './options.ts';
import { preadv, tryPreadv } from './read.ts';
import { afterReopen, reopenAbort, reopenCommit, reopenPrepare, settle } from './reopen.ts';
import { truncate } from './resize.ts';
import { snapshots } from './snapshots.ts';
import { Mapping, type Qcow2Node, type Qcow2State } from './state.ts';
import { vmState, vmStateOffset } from './vm-state.ts';
import { pwritev, tryPwritev } from './write.ts';
import { flushMetadata, isClean } from './writeback.ts';

async function flush(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  if (node.state.dead) return;
  // The children are flushed by the I/O path; with nothing changed there is nothing to put in order.
  if (!isClean(node.state)) await flushMetadata(node, guard);
}

async function close(node: Qcow2Node): Promise<void> {
  const s = node.state;
  stopTimers(s);
  try {
    if (!s.dead) {
      await node.layer.graphLock.withRead((guard) =>
        storeBitmaps(node, guard).catch(async (error: unknown) => {
          throw await toRequestError(node, guard, error);
        }),
      );
    }
    if (!s.dead && !node.readOnly) await settle(node);
  } finally {
    s.extras.cipher?.close?.();
  }
}

async function blockStatus(
  node: Qcow2Node,
  guard: GraphReadGuard,
  _wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const s = node.state;
  try {
    checkAlive(node);
    for (;;) {
      const missing = lookup(s, offset, bytes);
      if (missing === null) break;
      await satisfy(node, guard, missing);
    }
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
  const { kind, host, bytes: length } = s.found;
  const at = { bytes: length, map: 0, file: null };
  switch (kind) {
    case Mapping.data: {
      const raw = s.extras.cipher === null;
      // Ciphertext in the file says nothing of the content.
      return raw
        ? { bytes: length, flags: Status.data | Status.offsetValid, map: host, file: s.dataFile.node }
        : { ...at, flags: Status.data };
    }
    case Mapping.zero:
      return { ...at, flags: Status.zero };
    case Mapping.zeroAllocated:
      return { bytes: length, flags: Status.zero | Status.offsetValid, map: host, file: s.dataFile.node };
    case Mapping.compressed:
      return { ...at, flags: Status.data | Status.compressed };
    default:
      return { ...at, flags: 0 };
  }
}

function refreshLimits(node: Qcow2Node, limits: BlockLimits): void {
  const s = node.state;
  if (s.header.cryptMethod !== 0) limits.requestAlignment = Math.max(limits.requestAlignment, 512);
  limits.pwriteZeroesAlignment = s.subclusterBytes;
  limits.pdiscardAlignment = s.clusterBytes;
}

async function changeBackingFile(
  node: Qcow2Node,
  guard: GraphReadGuard,
  backing: BackingName | null,
): Promise<void> {
  const { header } = node.state;
  if (backing !== null && header.autoclear & Autoclear.dataFileRaw) throw ioError(E.EINVAL);
  if (backing !== null && Buffer.byteLength(backing.filename) > 1023) throw ioError(E.EINVAL);
  const before = { file: header.backingFile, format: header.backingFormat };
  header.backingFile = backing?.filename ?? null;
  header.backingFormat = backing?.format ?? null;
  try {
    await writeHeader(node, guard);
  } catch (error) {
    header.backingFile = before.file;
    header.backingFormat = before.format;
    throw error;
  }
}

export const qcow2: BlockDriver<Qcow2State> = {
  name: 'qcow2',
  kind: 'format',
  supportsBacking: true,
  exclusiveTruncate: true,
  supportedWriteFlags: 0,
  supportedZeroFlags: Req.mayUnmap | Req.noFallback,
  strongOptions: ['encrypt.key-secret'],
  probe: (start) => (isQcow2(start) ? 100 : 0),
  creation,
  open,
  afterOpen,
  mutableOptions: MUTABLE_OPTIONS,
  reopenPrepare,
  reopenCommit,
  reopenAbort,
  afterReopen,
  close,
  childPermissions: (node, roles, wanted) => formatChildPermissions(node, roles, wanted),
  refreshLimits,
  specificInfo,
  backingName: ({ state: { header } }) =>
    header.backingFile === null ? null : { filename: header.backingFile, format: header.backingFormat },
  snapshots,
  bitmaps,
  vmState,
  tryPreadv,
  tryPwritev,
  preadv,
  pwritev,
  pwritevCompressed,
  copyRangeVia,
  copyRangeFrom,
  copyRangeTo,
  pwriteZeroes,
  pdiscard,
  flush,
  blockStatus,
  truncate,
  check: (node, guard, request) =>
    exclusive(node, guard, () => check(node, guard, request, () => reloadTables(node, guard))),
  amend,
  changeBackingFile,
  measure,
  getLength: async (node) => node.state.header.size,
  getInfo: async ({ state: s }) => ({
    clusterSizeBytes: s.clusterBytes,
    isDirty: (s.header.incompatible & Incompat.dirty) !== 0,
    vmStateOffset: vmStateOffset(s),
  }),
};
