/**
 * qcow2: the driver record. What each callback does is in the file it comes from; the folder's README.md tells the
 * format, the invariants and who waits for whom.
 */

import { byteLength } from '../../../aio/host/names.ts';
import type { BlockDriver } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BackingName } from '../../../block/contract/image.ts';
import { type BlockLimits, type BlockStatus, Req, Status } from '../../../block/contract/request.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { bitmaps, storeBitmaps } from './bitmaps/bitmaps.ts';
import { amend } from './change/amend.ts';
import { creation } from './change/create-options.ts';
import { measure } from './change/measure.ts';
import { truncate } from './change/resize.ts';
import { check } from './check/check.ts';
import { pwritevCompressed } from './data/compressed-write.ts';
import { copyRangeFrom, copyRangeTo, copyRangeVia } from './data/copy-range.ts';
import { makeEmpty, pdiscard, pwriteZeroes } from './data/discard.ts';
import { preadv, tryPreadv } from './data/read.ts';
import { pwritev, tryPwritev, unheldNow } from './data/write.ts';
import { checkAlive } from './layout/damage.ts';
import { Autoclear, Incompat } from './layout/layout.ts';
import { isQcow2 } from './layout/magic.ts';
import { Mapping, type MappingKind, type Qcow2Node, type Qcow2State } from './layout/state.ts';
import { toRequestError } from './metadata/corruption.ts';
import { exclusive } from './metadata/exclusive.ts';
import { lookup } from './metadata/mapping.ts';
import { writeHeader } from './metadata/metadata-io.ts';
import { satisfy } from './metadata/needs.ts';
import { hasPreallocatedMetadata } from './metadata/preallocation.ts';
import { flushMetadata, isClean } from './metadata/writeback.ts';
import { specificInfo } from './open/info.ts';
import { afterOpen, open, reloadTables, stopTimers } from './open/open.ts';
import { MUTABLE_OPTIONS } from './open/options.ts';
import { afterReopen, reopenAbort, reopenCommit, reopenPrepare, settle } from './open/reopen.ts';
import { snapshots } from './snapshots/snapshots.ts';
import { vmState, vmStateOffset } from './snapshots/vm-state.ts';

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
    s.extras.cipher?.close();
  }
}

interface Extent {
  readonly kind: MappingKind;
  readonly host: number;
  bytes: number;
}

async function lookUp(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  const s = node.state;
  for (;;) {
    const missing = lookup(s, offset, bytes);
    if (missing === null) return { kind: s.found.kind, host: s.found.host, bytes: s.found.bytes };
    await satisfy(node, guard, missing);
  }
}

/** What guest [offset, offset+bytes) starts with, over the slices of one L2 table: the original does not look further either. */
async function findExtent(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Extent> {
  const { l2SpanBytes } = node.state;
  const end = Math.min(offset + bytes, (Math.floor(offset / l2SpanBytes) + 1) * l2SpanBytes);
  const extent = await lookUp(node, guard, offset, end - offset);
  if (extent.kind === Mapping.compressed) return extent;
  const isHosted = extent.kind === Mapping.data || extent.kind === Mapping.zeroAllocated;
  while (offset + extent.bytes < end) {
    const at = offset + extent.bytes;
    // What is damaged there is told to whoever asks for it.
    const next = await lookUp(node, guard, at, end - at).catch(() => null);
    if (next === null || next.kind !== extent.kind) break;
    if (isHosted && next.host !== extent.host + extent.bytes) break;
    extent.bytes += next.bytes;
  }
  return extent;
}

async function blockStatus(
  node: Qcow2Node,
  guard: GraphReadGuard,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const s = node.state;
  let extent: Extent;
  try {
    checkAlive(node);
    extent = await findExtent(node, guard, offset, bytes);
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
  const { kind, host, bytes: length } = extent;
  const at = { bytes: length, map: 0, file: null };
  switch (kind) {
    case Mapping.data: {
      // Ciphertext in the file says nothing of the content.
      if (s.extras.cipher !== null) return { ...at, flags: Status.data };
      const place = { bytes: length, map: host, file: s.dataFile.node };
      const flags = Status.data | Status.offsetValid;
      const asks = wantZero && (await hasPreallocatedMetadata(node, guard));
      return { ...place, flags: asks ? flags : flags | Status.final };
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
  if (backing !== null && byteLength(backing.filename) > 1023) throw ioError(E.EINVAL);
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
  fixedLength: true,
  supportsBacking: true,
  exclusiveTruncate: true,
  growsZeroed: true,
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
  unheldNow,
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
  makeEmpty,
  measure,
  getLength: async (node) => node.state.header.size,
  getInfo: async ({ state: s }) => ({
    clusterSizeBytes: s.clusterBytes,
    isDirty: (s.header.incompatible & Incompat.dirty) !== 0,
    vmStateOffset: vmStateOffset(s),
  }),
};
