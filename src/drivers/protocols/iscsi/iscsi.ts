/**
 * iscsi: a logical unit of an iSCSI target, through libiscsi.
 *
 * Options (QMP reference, BlockdevOptionsIscsi): transport (tcp), portal, target, lun, user, password-secret,
 * initiator-name, header-digest, timeout. The session is session.ts, names are names.ts.
 * Source of the facts: SBC-3 (READ CAPACITY, UNMAP, WRITE SAME, GET LBA STATUS).
 */

import { hostname } from 'node:os';
import { addressOf } from '../../../aio/ffi.ts';
import { IovArray } from '../../../aio/iov-array.ts';
import { allocateIoMemory, type IoMemory, type IoVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { type BlockStatus, Req, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { existingCreation } from '../protocol-create.ts';
import { iscsiNames, PASSWORD_OPTION } from './names.ts';
import { type IscsiSession, openSession } from './session.ts';

interface IscsiOptions {
  readonly transport?: 'tcp' | 'iser';
  readonly portal: string;
  readonly target: string;
  /** A text when it comes from a name. */
  readonly lun?: number | string;
  readonly user?: string;
  readonly 'password-secret'?: string;
  readonly [PASSWORD_OPTION]?: string;
  readonly 'initiator-name'?: string;
  readonly 'header-digest'?: keyof typeof HEADER_DIGESTS;
  readonly timeout?: number;
}

interface Capacity {
  readonly blockBytes: number;
  readonly sizeBytes: number;
  /** Blocks may be unmapped, and how many are is known. */
  readonly isThin: boolean;
  readonly readsZeroes: boolean;
}

interface IscsiState {
  readonly session: IscsiSession;
  capacity: Capacity;
  /** The unit has no WRITE SAME, UNMAP or GET LBA STATUS: found out by trying. */
  readonly lacks: Set<'write-same' | 'unmap' | 'lba-status'>;
  readonly zeroes: IoMemory;
  /** Vectors of requests that are over. */
  readonly arrays: IovArray[];
}

type IscsiNode = BlockNode<IscsiState>;

const HEADER_DIGESTS = { none: 0, 'none-crc32c': 1, 'crc32c-none': 2, crc32c: 3 } as const;
const MAX_TRANSFER_BYTES = 2 * 1024 * 1024;
/** Segments of a vector that is kept, and how many are kept. */
const USUAL_SEGMENTS = 64;
const MAX_ARRAYS = 64;
const MAX_ZERO_BLOCKS = 65535;
const WRITE_PROTECT_BIT = 0x80;
const LBA_STATUS_BYTES = 8 + 16;

async function open(node: IscsiNode, context: OpenContext): Promise<IscsiState> {
  const options = context.options as unknown as IscsiOptions;
  const { layer } = node;
  if (options.transport === 'iser')
    throw new BlockError("Driver 'iscsi' has no transport 'iser' here: it needs RDMA", { errno: E.ENOTSUP });
  const secret = options['password-secret'];
  const opening = openSession({
    initiator: options['initiator-name'] ?? `iqn.2008-11.org.linux-kvm:${hostname()}`,
    portal: options.portal,
    target: options.target,
    lun: Number(options.lun ?? 0),
    user: options.user,
    password: secret === undefined ? options[PASSWORD_OPTION] : layer.secret(secret).toString('utf8'),
    headerDigest: HEADER_DIGESTS[options['header-digest'] ?? 'none-crc32c'],
    timeoutS: options.timeout ?? 0,
    signal: layer.endSignal,
  });
  const session = await layer.whileOpening(opening);
  try {
    if (!node.readOnly && (await isWriteProtected(session))) {
      if (!context.autoReadOnly) throw new BlockError('LUN is write protected', { errno: E.EACCES });
      node.readOnly = true;
    }
    const capacity = await readCapacity(session);
    const zeroes = allocateIoMemory(capacity.blockBytes);
    zeroes.buf.fill(0);
    return { session, capacity, lacks: new Set(), zeroes, arrays: [] };
  } catch (error) {
    session.close();
    throw error;
  }
}

async function isWriteProtected({ library, context, lun, command }: IscsiSession): Promise<boolean> {
  const ALL_PAGES = 0x3f;
  try {
    const data = await command(
      (id) => library.modeSense6(context, lun, 1, 0, ALL_PAGES, 0, 255, library.done, id),
      null,
    );
    return data.length > 2 && (data[2]! & WRITE_PROTECT_BIT) !== 0;
  } catch {
    return false; // It does not say.
  }
}

async function readCapacity({ library, context, lun, command }: IscsiSession): Promise<Capacity> {
  const data = await command((id) => library.readCapacity16(context, lun, library.done, id), null);
  if (data.length < 16) throw new BlockError('iSCSI: Failed to read the capacity', { errno: E.EIO });
  const blockBytes = data.readUInt32BE(8);
  if (blockBytes < 512 || blockBytes > 65536 || (blockBytes & (blockBytes - 1)) !== 0)
    throw new BlockError(`the target returned an invalid block size of ${blockBytes}.`, { errno: E.EINVAL });
  return {
    blockBytes,
    sizeBytes: (Number(data.readBigUInt64BE(0)) + 1) * blockBytes,
    isThin: (data[14]! & 0x80) !== 0,
    readsZeroes: (data[14]! & 0x40) !== 0,
  };
}

// ---- I/O -----------------------------------------------------------------------------------------------------

/** The vector for the library, in an array that is used again: making one costs more than the rest of a request. */
function takeArray({ arrays }: IscsiState, { segments }: IoVector): IovArray {
  const isUsual = segments.length <= USUAL_SEGMENTS;
  const array = (isUsual && arrays.pop()) || new IovArray(Math.max(USUAL_SEGMENTS, segments.length));
  array.fill(segments, 0);
  return array;
}

function giveArray({ arrays }: IscsiState, array: IovArray, { segments }: IoVector): void {
  if (segments.length <= USUAL_SEGMENTS && arrays.length < MAX_ARRAYS) arrays.push(array);
}

function preadv(
  { state }: IscsiNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { library, context, lun, transfer } = state.session;
  const { blockBytes } = state.capacity;
  const iov = takeArray(state, vec);
  const [addr, count] = [iov.memory.addr, vec.segments.length];
  const lba = offset / blockBytes;
  return transfer(
    (id) =>
      library.read16(context, lun, lba, bytes, blockBytes, 0, 0, 0, 0, 0, library.done, id, addr, count),
    [iov, vec],
    () => giveArray(state, iov, vec),
  );
}

function pwritev(
  { state }: IscsiNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (bytes === 0) return Promise.resolve();
  const { library, context, lun, transfer } = state.session;
  const { blockBytes } = state.capacity;
  const iov = takeArray(state, vec);
  const [addr, count] = [iov.memory.addr, vec.segments.length];
  const fua = (flags & Req.fua) === 0 ? 0 : 1;
  const lba = offset / blockBytes;
  return transfer(
    (id) =>
      library.write16(
        context,
        lun,
        lba,
        0,
        bytes,
        blockBytes,
        0,
        0,
        fua,
        0,
        0,
        library.done,
        id,
        addr,
        count,
      ),
    [iov, vec],
    () => giveArray(state, iov, vec),
  );
}

function isUnsupported(error: unknown): boolean {
  return error instanceof BlockError && (error.errno === E.ENOTSUP || error.errno === E.EINVAL);
}

async function pwriteZeroes(
  { state }: IscsiNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const { library, context, lun, command } = state.session;
  const { blockBytes, isThin, readsZeroes } = state.capacity;
  if (state.lacks.has('write-same')) throw new BlockError('Operation not supported', { errno: E.ENOTSUP });
  const unmap = (flags & Req.mayUnmap) !== 0 && isThin && readsZeroes ? 1 : 0;
  const [lba, blocks] = [offset / blockBytes, bytes / blockBytes];
  try {
    await command(
      (id) =>
        library.writeSame16(
          ...[context, lun, lba, state.zeroes.addr, blockBytes, blocks, 0, unmap, 0, 0, library.done, id],
        ),
      state.zeroes,
    );
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    state.lacks.add('write-same');
    throw new BlockError('Operation not supported', { errno: E.ENOTSUP, cause: error });
  }
}

async function pdiscard({ state }: IscsiNode, _guard: unknown, offset: number, bytes: number): Promise<void> {
  const { library, context, lun, command } = state.session;
  const { blockBytes, isThin } = state.capacity;
  if (!isThin || state.lacks.has('unmap')) return;
  // struct unmap_list: lba u64, number of blocks u32.
  const list = Buffer.allocUnsafeSlow(16).fill(0);
  list.writeBigUInt64LE(BigInt(offset / blockBytes), 0);
  list.writeUInt32LE(bytes / blockBytes, 8);
  const memory = addressOf(list);
  try {
    await command((id) => library.unmap(context, lun, 0, 0, memory, 1, library.done, id), list);
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    state.lacks.add('unmap');
  }
}

async function blockStatus(
  node: IscsiNode,
  _guard: unknown,
  _wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const { session, capacity, lacks } = node.state;
  const { library, context, lun, command } = session;
  const answer = (length: number, flag: number): BlockStatus => ({
    bytes: length,
    flags: flag | Status.offsetValid,
    map: offset,
    file: node,
  });
  if (!capacity.isThin || lacks.has('lba-status')) return answer(bytes, Status.data);
  const lba = Math.floor(offset / capacity.blockBytes);
  let data: Buffer;
  try {
    data = await command(
      (id) => library.lbaStatus(context, lun, lba, LBA_STATUS_BYTES, library.done, id),
      null,
    );
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    lacks.add('lba-status');
    return answer(bytes, Status.data);
  }
  // One descriptor: first block u64, blocks u32, status: 0 mapped, 1 deallocated, 2 anchored.
  if (data.length < LBA_STATUS_BYTES || Number(data.readBigUInt64BE(8)) !== lba)
    return answer(bytes, Status.data);
  const length = Math.min(bytes, data.readUInt32BE(16) * capacity.blockBytes);
  if (length <= 0) return answer(bytes, Status.data);
  const isMapped = (data[20]! & 0x0f) === 0;
  if (isMapped) return answer(length, Status.data);
  return answer(length, capacity.readsZeroes ? Status.zero : 0);
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const iscsi: BlockDriver<IscsiState> = {
  name: 'iscsi',
  kind: 'protocol',
  supportedWriteFlags: Req.fua,
  supportedZeroFlags: Req.mayUnmap,
  costlyStatus: true,
  ...iscsiNames,
  strongOptions: ['transport', 'portal', 'target', 'lun', 'user', 'password-secret', 'initiator-name'],
  creation: existingCreation('iscsi'),
  open,
  close: async ({ state }) => state.session.close(),
  reopenPrepare: async () => undefined,
  cancelInFlight: ({ state }) => state.session.cancel(),
  refreshLimits({ state: { capacity } }, limits) {
    limits.requestAlignment = capacity.blockBytes;
    limits.maxTransfer = MAX_TRANSFER_BYTES;
    limits.maxPdiscard = MAX_ZERO_BLOCKS * capacity.blockBytes;
    limits.maxPwriteZeroes = MAX_ZERO_BLOCKS * capacity.blockBytes;
    limits.pdiscardAlignment = capacity.blockBytes;
    limits.pwriteZeroesAlignment = capacity.blockBytes;
  },
  preadv,
  pwritev,
  pwriteZeroes,
  pdiscard,
  async flush({ state: { session } }) {
    const { library, context, lun, command } = session;
    await command((id) => library.synchronizeCache16(context, lun, 0, 0, 0, 0, library.done, id), null);
  },
  blockStatus,
  async truncate({ state }, _guard, length, exact, prealloc) {
    if (prealloc !== 'off')
      throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
    state.capacity = await readCapacity(state.session);
    if (exact && length !== state.capacity.sizeBytes)
      throw new BlockError('Cannot resize iSCSI devices', { errno: E.ENOTSUP });
    if (length > state.capacity.sizeBytes)
      throw new BlockError('Cannot grow iSCSI devices', { errno: E.EINVAL });
  },
  async getLength({ state }) {
    state.capacity = await readCapacity(state.session);
    return state.capacity.sizeBytes;
  },
  getAllocatedFileSize: async () => -1,
  getInfo: async () => ({ clusterSizeBytes: 0 }),
};
