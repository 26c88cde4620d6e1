/**
 * raw: the bytes of `file`, or a window of them.
 *
 * No on-disk structure. Options: `file`; `offset` in bytes (default 0) and `size` in bytes (default: the rest), which
 * cut a window out of the file. A window has a fixed size and needs its file to keep its own.
 * Source of the facts: QEMU documentation, "raw" block driver; QMP reference, BlockdevOptionsRaw.
 */

import { copyFromVector, type IoVector, sliceVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { Perm, Req, Role, Status } from '../../block/contract/request.ts';
import { type BlockNode, refreshLimits } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import { createProtocolFile } from '../protocols/protocol-create.ts';

interface RawState {
  offset: number;
  /** Bytes of the window; null: up to the end of the file, growing with it. */
  size: number | null;
  /** Nobody said that the image is raw: it must not come to look like another format. */
  probed: boolean;
}

/** Bytes at the start of an image that formats are known by; written as a whole to a probed image. */
const PROBED_BYTES = 512;

async function open(_node: BlockNode<RawState>, context: OpenContext): Promise<RawState> {
  const file = await context.openChild('file', Role.data | Role.primary, true);
  return { ...windowOf(context.options, file!.node.totalBytes), probed: false };
}

/** The window that the options ask for; throws when it is not inside the file. */
function windowOf(given: DriverOptions, fileBytes: number): Pick<RawState, 'offset' | 'size'> {
  const options = given as { readonly offset?: number; readonly size?: number };
  for (const name of ['offset', 'size'] as const) {
    if ((options[name] ?? 0) < 0)
      throw new BlockError(`Parameter '${name}' expects a non-negative number below 2^64`);
  }
  const offset = options.offset ?? 0;
  if (offset > fileBytes) {
    throw new BlockError(
      `Offset (${offset}) cannot be greater than size of the containing file (${fileBytes})`,
    );
  }
  if (options.size !== undefined) {
    if (fileBytes - offset < options.size) {
      throw new BlockError(
        `The sum of offset (${offset}) and size (${options.size}) has to be smaller or equal to the  actual size of the containing file (${fileBytes})`,
      );
    }
    if (options.size % 512 !== 0) throw new BlockError('Specified size is not multiple of 512');
  }
  return { offset, size: options.size ?? null };
}

/** The file's node and the place of a range of ours in it. */
function fileOf(node: BlockNode<RawState>): BlockNode {
  return node.children[0]!.node;
}

/** Throws unless the range is inside the window. */
function checkWindow({ size }: RawState, offset: number, bytes: number, errno: number): void {
  if (size !== null && offset + bytes > size) throw ioError(errno);
}

/**
 * Throws EPERM when a write would make another format of an image that was taken for raw: whoever opened it the next
 * time would follow what the writer, perhaps a guest, has put into the header.
 */
function checkStart(node: BlockNode<RawState>, vec: IoVector): void {
  const start = Buffer.alloc(2048);
  copyFromVector(sliceVector(vec, 0, Math.min(vec.bytes, PROBED_BYTES)), start);
  const isAnother = Object.values(node.layer.drivers).some((driver) => (driver.probe?.(start) ?? 0) > 0);
  if (isAnother) throw ioError(E.EPERM);
}

export const raw: BlockDriver<RawState> = {
  name: 'raw',
  kind: 'format',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  strongOptions: ['offset', 'size'],
  // A raw image is made by making its file; over QMP there is nothing to be done to a node.
  creation: {
    options: [{ name: 'size', type: 'size', help: 'Virtual disk size' }],
    createFile: createProtocolFile,
  },
  open,
  mutableOptions: { offset: 'resets', size: 'resets' },
  reopenPrepare: async (_node, { options, child }) => windowOf(options, child('file')!.totalBytes),
  reopenCommit(node, prepared) {
    Object.assign(node.state, prepared as Pick<RawState, 'offset' | 'size'>);
  },
  childPermissions(node, _roles, wanted) {
    // Before `state` is there the node is being opened and has no users.
    const window = node.state as RawState | undefined;
    const fixed = window !== undefined && (window.offset !== 0 || window.size !== null);
    return fixed ? { perm: wanted.perm, shared: wanted.shared & ~Perm.resize } : wanted;
  },
  tryPreadv({ state, children }, guard, offset, bytes, vec, short) {
    if (state.size !== null && offset + bytes > state.size) return false;
    return sync.tryPreadv(children[0]!.node, guard, offset + state.offset, bytes, vec, short);
  },
  lendPages({ state, children }, guard, offset, bytes) {
    if (state.size !== null && offset + bytes > state.size) return null;
    return sync.lendPages(children[0]!.node, guard, offset + state.offset, bytes);
  },
  wasProbed(node) {
    node.state.probed = true;
    refreshLimits(node);
  },
  refreshLimits({ state }, limits) {
    // The first sector is always written as a whole.
    if (state.probed) limits.requestAlignment = Math.max(limits.requestAlignment, PROBED_BYTES);
  },
  tryPwritev({ state, children }, guard, offset, bytes, vec, short) {
    if (state.probed && offset < PROBED_BYTES) return false;
    if (state.size !== null && offset + bytes > state.size) return false;
    return sync.tryPwritev(children[0]!.node, guard, offset + state.offset, bytes, vec, short);
  },
  copyRangeVia: (node) => fileOf(node),
  async copyRangeFrom(node, guard, offset, bytes, sink) {
    const { state } = node;
    if (state.size !== null && offset + bytes > state.size) return false;
    return co.copyRangeFrom(fileOf(node), guard, offset + state.offset, bytes, sink);
  },
  async copyRangeTo(node, guard, offset, bytes, from) {
    const { state } = node;
    if (state.probed && offset < PROBED_BYTES) return false;
    if (state.size !== null && offset + bytes > state.size) return false;
    return co.copyRangeTo(fileOf(node), guard, offset + state.offset, bytes, from);
  },
  preadv(node, guard, offset, bytes, vec, flags) {
    checkWindow(node.state, offset, bytes, E.EINVAL);
    const file = fileOf(node);
    const at = offset + node.state.offset;
    if (!file.takesDebugEvents) return co.preadv(file, guard, at, bytes, vec, flags);
    return co.debugEvent(file, guard, 'read_aio').then(() => co.preadv(file, guard, at, bytes, vec, flags));
  },
  pwritev(node, guard, offset, bytes, vec, flags) {
    checkWindow(node.state, offset, bytes, E.ENOSPC);
    if (node.state.probed && offset < PROBED_BYTES && bytes > 0) checkStart(node, vec);
    const file = fileOf(node);
    const at = offset + node.state.offset;
    if (!file.takesDebugEvents) return co.pwritev(file, guard, at, bytes, vec, flags);
    return co.debugEvent(file, guard, 'write_aio').then(() => co.pwritev(file, guard, at, bytes, vec, flags));
  },
  pwriteZeroes(node, guard, offset, bytes, flags) {
    checkWindow(node.state, offset, bytes, E.EINVAL);
    return co.pwriteZeroes(fileOf(node), guard, offset + node.state.offset, bytes, flags);
  },
  pdiscard(node, guard, offset, bytes) {
    checkWindow(node.state, offset, bytes, E.EINVAL);
    return co.pdiscard(fileOf(node), guard, offset + node.state.offset, bytes);
  },
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    const flags = Status.offsetValid | Status.recurse;
    return { bytes, flags, map: offset + node.state.offset, file: fileOf(node) };
  },
  async measure(_values, source) {
    const bytes = Math.ceil(source.bytes / 512) * 512;
    return { required: bytes, fullyAllocated: bytes };
  },
  async getLength(node) {
    return node.state.size ?? Math.max(0, fileOf(node).totalBytes - node.state.offset);
  },
  truncate(node, guard, length, exact, prealloc, zeroFill) {
    const { offset, size } = node.state;
    if (size !== null) throw new BlockError('Cannot resize fixed-size raw disks', { errno: E.ENOTSUP });
    if (length > Number.MAX_SAFE_INTEGER * 1024 - offset)
      throw new BlockError('Disk size too large for the chosen offset', { errno: E.EINVAL });
    return co.truncate(fileOf(node), guard, length + offset, exact, prealloc, zeroFill);
  },
};
