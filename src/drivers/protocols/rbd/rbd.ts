/**
 * rbd: an image of a Ceph cluster, through librbd.
 *
 * Options (QMP reference, BlockdevOptionsRbd): pool, namespace, image, conf, snapshot, encrypt, user,
 * auth-client-required, key-secret, server. Connecting is connect.ts, requests are requests.ts, names names.ts.
 */

import { addressOf } from '../../../aio/ffi.ts';
import { callPooled } from '../../../aio/host/pooled-calls.ts';
import { type Librbd, WRITE_ZEROES_THICK } from '../../../aio/libraries/librbd.ts';
import { copyFromVector, copyToVector, fillVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Req } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { within } from '../../net/within.ts';
import {
  checked,
  openImage,
  openPool,
  type RbdImage,
  type RbdOptions,
  type RbdPool,
  sizeOf,
} from './connect.ts';
import { creation } from './create.ts';
import { rbdNames } from './names.ts';
import { createRequests, type RbdRequests } from './requests.ts';
import { blockStatus } from './status.ts';

export interface RbdState {
  readonly library: Librbd;
  readonly pool: RbdPool;
  readonly image: number;
  readonly headerBytes: number;
  readonly requests: RbdRequests;
  readonly objectBytes: number;
  readonly isSnapshot: boolean;
  readonly encryption: 'luks' | 'luks2' | null;
  sizeBytes: number;
  /** The resize under way, for writes behind the end. */
  resizing: Promise<void>;
}

type RbdNode = BlockNode<RbdState>;

/** sizeof(rbd_image_info_t), and where its obj_size is. */
const INFO_BYTES = 160;
const OBJECT_BYTES_AT = 8;

async function open(node: RbdNode, context: OpenContext): Promise<RbdState> {
  const options = context.options as unknown as RbdOptions;
  const { layer } = node;
  const isSnapshot = options.snapshot !== undefined;
  const { endSignal } = layer;
  const opening = (async () => {
    const pool = await openPool(layer, options, !node.settings.cache.direct);
    let image: RbdImage | null = null;
    try {
      image = await openImage(layer, pool, options, node.readOnly || isSnapshot);
      if (isSnapshot && !node.readOnly) {
        if (!context.autoReadOnly) throw new BlockError('rbd snapshots are read-only', { errno: E.EACCES });
        node.readOnly = true;
      }
      const state = await stateOf(pool, image, options);
      if (!endSignal.aborted) return state;
      state.requests.close();
      throw ioError(E.ECANCELED);
    } catch (error) {
      if (image !== null) await callPooled(pool.library.pooled.close, image.handle);
      await pool.close();
      throw error;
    }
  })();
  // A monitor that does not answer is waited for by the library alone.
  return layer.whileOpening(within(opening, null, endSignal));
}

async function stateOf(
  pool: RbdPool,
  { handle: image, headerBytes }: RbdImage,
  options: RbdOptions,
): Promise<RbdState> {
  const { library } = pool;
  const info = Buffer.allocUnsafeSlow(INFO_BYTES).fill(0);
  checked(
    await callPooled(library.pooled.stat, image, addressOf(info), INFO_BYTES),
    'error getting image info',
  );
  return {
    library,
    pool,
    image,
    headerBytes,
    requests: createRequests(library, image),
    objectBytes: Number(info.readBigUInt64LE(OBJECT_BYTES_AT)),
    isSnapshot: options.snapshot !== undefined,
    encryption: options.encrypt?.format ?? null,
    sizeBytes: await sizeOf(library, image),
    resizing: Promise.resolve(),
  };
}

async function close({ state: { library, pool, image, requests } }: RbdNode): Promise<void> {
  // What was given up goes on in the library: closing would wait for it, maybe for ever.
  if (requests.underWay > 0) return;
  const closed = await requests.waitFor(callPooled(library.pooled.close, image));
  requests.close();
  await requests.waitFor(pool.close().then(() => 0));
  checked(closed, 'error closing image');
}

// ---- I/O -----------------------------------------------------------------------------------------------------

async function preadv(
  { state }: RbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { library, image, requests } = state;
  const memory = requests.take(bytes);
  const got = await requests.run(memory, (completion) =>
    library.aioRead(image, offset, bytes, memory.addr, completion),
  );
  const inside = Math.min(got, bytes);
  copyToVector(vec, memory.buf.subarray(0, inside));
  requests.give(memory);
  if (inside < bytes) fillVector(sliceVector(vec, inside, bytes - inside), 0);
}

/** Makes the image at least `end` bytes long. */
async function growTo(state: RbdState, end: number): Promise<void> {
  if (end <= state.sizeBytes) return;
  const growing = state.resizing.then(async () => {
    if (end > state.sizeBytes) await resize(state, end);
  });
  state.resizing = growing.catch(() => undefined);
  await growing;
}

async function resize(state: RbdState, length: number): Promise<void> {
  const { library, image, headerBytes, requests } = state;
  const resized = await requests.waitFor(callPooled(library.pooled.resize, image, length + headerBytes));
  checked(resized, 'failed to resize file');
  state.sizeBytes = await sizeOf(library, image, requests.waitFor);
}

async function pwritev(
  { state }: RbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  if (bytes === 0) return;
  await growTo(state, offset + bytes);
  const { library, image, requests } = state;
  const memory = requests.take(bytes);
  copyFromVector(vec, memory.buf);
  await requests.run(memory, (completion) => library.aioWrite(image, offset, bytes, memory.addr, completion));
  requests.give(memory);
}

async function pwriteZeroes(
  { state }: RbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  await growTo(state, offset + bytes);
  const zeroFlags = (flags & Req.mayUnmap) === 0 ? WRITE_ZEROES_THICK : 0;
  await state.requests.run(null, (completion) =>
    state.library.aioWriteZeroes(state.image, offset, bytes, completion, zeroFlags, 0),
  );
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const rbd: BlockDriver<RbdState> = {
  name: 'rbd',
  kind: 'protocol',
  growsWithZeroes: true,
  supportedWriteFlags: 0,
  supportedZeroFlags: Req.mayUnmap,
  costlyStatus: true,
  ...rbdNames,
  strongOptions: ['pool', 'namespace', 'image', 'conf', 'snapshot', 'user', 'server', 'key-secret'],
  creation,
  open,
  close,
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && state.isSnapshot)
      throw new BlockError('Cannot change node to read-write when using RBD snapshot', { errno: E.EINVAL });
  },
  reopenCommit(node) {
    if (node.state.isSnapshot) node.readOnly = true;
  },
  cancelInFlight: ({ state }) => state.requests.cancel(),
  refreshLimits({ state }, limits) {
    limits.optTransfer = state.objectBytes;
  },
  specificInfo: ({ state }) => ({
    type: 'rbd',
    data: state.encryption === null ? {} : { 'encryption-format': state.encryption },
  }),
  preadv,
  pwritev,
  pwriteZeroes,
  async pdiscard({ state }, _guard, offset, bytes) {
    await state.requests.run(null, (completion) =>
      state.library.aioDiscard(state.image, offset, bytes, completion),
    );
  },
  async flush({ state }) {
    await state.requests.run(null, (completion) => state.library.aioFlush(state.image, completion));
  },
  blockStatus: (node, _guard, _wantZero, offset, bytes) => blockStatus(node, offset, bytes),
  async truncate({ state }, _guard, length, _exact, prealloc) {
    if (prealloc !== 'off')
      throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
    await resize(state, length);
  },
  async getLength({ state }) {
    state.sizeBytes = await sizeOf(state.library, state.image, state.requests.waitFor);
    return state.sizeBytes;
  },
  getAllocatedFileSize: async () => -1,
  getInfo: async ({ state }) => ({ clusterSizeBytes: state.objectBytes }),
};
