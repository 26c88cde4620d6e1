/**
 * gluster: a file on a Gluster volume, through libgfapi.
 *
 * Options (QMP reference, BlockdevOptionsGluster): volume, path, server (inet and unix), debug, logfile. The library's
 * asynchronous calls finish on threads of its own, which must not come here: its waiting ones are made on libuv's pool, a
 * few at a time. Connecting is volume.ts, names are names.ts.
 */

import { addressOf } from '../../../aio/ffi.ts';
import { type Callable, callPooledErrno } from '../../../aio/host/pooled-calls.ts';
import {
  allocateIoMemory,
  copyFromVector,
  copyToVector,
  fillVector,
  type IoVector,
  sliceVector,
} from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { type BlockStatus, Req, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { createCancelScope } from '../../net/cancel.ts';
import { soon } from '../../net/within.ts';
import { creation } from './create.ts';
import { glusterNames } from './names.ts';
import { resizeFile } from './resize.ts';
import {
  type FileMode,
  type GlusterOptions,
  type GlusterVolume,
  openFile,
  openVolume,
  readStat,
  STAT_BYTES,
} from './volume.ts';

interface GlusterState {
  readonly volume: GlusterVolume;
  readonly writable: boolean;
  sizeBytes: number;
  /** Runs a call on the handle; its result, 0 or more. `memory` is what it knows by address. */
  call(fn: Callable, memory: Buffer | null, ...args: readonly number[]): Promise<number>;
  cancel(): void;
  /** Calls that the library is in, wanted or not. */
  readonly underWay: number;
}

type GlusterNode = BlockNode<GlusterState>;

const MAX_TRANSFER_BYTES = 1024 * 1024;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

async function open(node: GlusterNode, context: OpenContext): Promise<GlusterState> {
  const options = context.options as GlusterOptions;
  const { endSignal } = node.layer;
  return node.layer.whileOpening(
    (async () => {
      const volume = await openVolume(options, endSignal);
      const openAs = (mode: FileMode): Promise<number> =>
        openFile(volume, options, mode, node.settings.cache.direct, endSignal);
      try {
        let handle: number;
        try {
          handle = await openAs(node.readOnly ? 'read' : 'write');
        } catch (error) {
          const mayRead = context.autoReadOnly && error instanceof BlockError && !node.readOnly;
          if (!mayRead || (error.errno !== E.EACCES && error.errno !== E.EROFS)) throw error;
          node.readOnly = true;
          handle = await openAs('read');
        }
        return await stateOf(volume, handle, !node.readOnly);
      } catch (error) {
        volume.end();
        throw error;
      }
    })(),
  );
}

async function stateOf(volume: GlusterVolume, handle: number, writable: boolean): Promise<GlusterState> {
  const scope = createCancelScope();
  let underWay = 0;
  const state: GlusterState = {
    volume,
    writable,
    sizeBytes: 0,
    call(fn, memory, ...args) {
      return new Promise((resolve, reject) => {
        underWay++;
        const leave = scope.add(() => reject(ioError(E.ECANCELED)));
        callPooledErrno(fn, false, handle, ...args).then((result) => {
          underWay--;
          leave();
          // Until here the library may use it, whoever waits.
          void memory?.length;
          if (result < 0) reject(ioError(-result));
          else resolve(result);
        });
      });
    },
    cancel: scope.cancelAll,
    get underWay() {
      return underWay;
    },
  };
  state.sizeBytes = (await statOf(state)).size;
  return state;
}

async function statOf({ volume, call }: GlusterState): Promise<ReturnType<typeof readStat>> {
  const stat = Buffer.allocUnsafeSlow(STAT_BYTES).fill(0);
  await call(volume.library.pooled.fstat, stat, addressOf(stat));
  return readStat(stat);
}

async function close({ state: { volume, underWay, call } }: GlusterNode): Promise<void> {
  // What was given up goes on in the library: closing would wait for it.
  if (underWay > 0) return;
  await call(volume.library.pooled.close, null);
  volume.end();
}

// ---- I/O -----------------------------------------------------------------------------------------------------

async function preadv(
  { state }: GlusterNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { pread } = state.volume.library.pooled;
  const memory = allocateIoMemory(bytes);
  let done = 0;
  while (done < bytes) {
    const got = await state.call(pread, memory.buf, memory.addr + done, bytes - done, offset + done, 0, 0);
    if (got === 0) break;
    done += got;
  }
  copyToVector(vec, memory.buf.subarray(0, done));
  if (done < bytes) fillVector(sliceVector(vec, done, bytes - done), 0);
}

async function pwritev(
  { state }: GlusterNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { pwrite } = state.volume.library.pooled;
  const memory = allocateIoMemory(Math.max(bytes, 1));
  copyFromVector(vec, memory.buf.subarray(0, bytes));
  for (let done = 0; done < bytes; ) {
    const at = memory.addr + done;
    const written = await state.call(pwrite, memory.buf, at, bytes - done, offset + done, 0, 0, 0);
    if (written === 0) throw ioError(E.EIO);
    done += written;
  }
  state.sizeBytes = Math.max(state.sizeBytes, offset + bytes);
}

async function pwriteZeroes(
  { state }: GlusterNode,
  _guard: unknown,
  offset: number,
  bytes: number,
): Promise<void> {
  await state.call(state.volume.library.pooled.zerofill, null, offset, bytes);
  state.sizeBytes = Math.max(state.sizeBytes, offset + bytes);
}

/** Where data are, by SEEK_DATA and SEEK_HOLE; bricks that do not know answer that all is data. */
async function blockStatus(node: GlusterNode, offset: number, bytes: number): Promise<BlockStatus> {
  const { call, volume } = node.state;
  const answer = (end: number, flag: number): BlockStatus => ({
    bytes: Math.max(1, Math.min(end - offset, bytes)),
    flags: flag | Status.offsetValid,
    map: offset,
    file: node,
  });
  /** Null: there is none (ENXIO). */
  const seek = async (whence: number): Promise<number | null> => {
    try {
      return await call(volume.library.pooled.lseek, null, offset, whence);
    } catch (error) {
      if (error instanceof BlockError && error.errno === E.ENXIO) return null;
      if (error instanceof BlockError && error.errno === E.ECANCELED) throw error;
      return -1;
    }
  };
  const data = await seek(SEEK_DATA);
  if (data === null) return answer(offset + bytes, Status.zero);
  if (data > offset) return answer(data, Status.zero);
  if (data < offset) return answer(offset + bytes, Status.data);
  const hole = await seek(SEEK_HOLE);
  return answer(hole !== null && hole > offset ? hole : offset + bytes, Status.data);
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const gluster: BlockDriver<GlusterState> = {
  name: 'gluster',
  kind: 'protocol',
  growsWithZeroes: true,
  supportedWriteFlags: 0,
  supportedZeroFlags: Req.mayUnmap,
  ...glusterNames,
  strongOptions: ['volume', 'path', 'server'],
  exactFilename: ({ settings }) => (settings.options['=name'] as string | undefined) ?? null,
  creation,
  open,
  close,
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && !state.writable)
      throw new BlockError('Cannot open a read-only file as read-write', { errno: E.EACCES });
  },
  reopenCommit(node) {
    if (!node.state.writable) node.readOnly = true;
  },
  cancelInFlight: ({ state }) => state.cancel(),
  refreshLimits(_node, limits) {
    limits.maxTransfer = MAX_TRANSFER_BYTES;
  },
  preadv,
  pwritev,
  pwriteZeroes,
  async pdiscard({ state }, _guard, offset, bytes) {
    await state.call(state.volume.library.pooled.discard, null, offset, bytes);
  },
  async flush({ state }) {
    await state.call(state.volume.library.pooled.fsync, null, 0, 0);
  },
  blockStatus: (node, _guard, _wantZero, offset, bytes) => blockStatus(node, offset, bytes),
  async truncate({ state }, _guard, length, _exact, prealloc) {
    await resizeFile(
      state.volume.library,
      (fn, ...args) => state.call(fn, null, ...args),
      state.sizeBytes,
      length,
      prealloc,
    );
    state.sizeBytes = length;
  },
  async getLength({ state }) {
    state.sizeBytes = (await statOf(state)).size;
    return state.sizeBytes;
  },
  // A query of all nodes does not wait for a server that is away.
  getAllocatedFileSize: async ({ state }) => (await soon(statOf(state)))?.used ?? -1,
};
