/**
 * nfs: a file on an NFS server (version 3), through libnfs.
 *
 * Options (QMP reference, BlockdevOptionsNfs): server, path, user, group, tcp-syn-count, readahead-size,
 * page-cache-size, debug. The open file is file.ts, names are names.ts.
 */

import { copyOut } from '../../../aio/libraries/libnfs.ts';
import {
  copyFromVector,
  fillVector,
  type IoMemory,
  type IoVector,
  sliceVector,
} from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { createOwnMemory, type OwnMemory } from '../../net/own-memory.ts';
import { soon } from '../../net/within.ts';
import { sizedFileCreation } from '../protocol-create.ts';
import { type NfsFile, type NfsOptions, openNfsFile, statFile } from './file.ts';
import { exactName, nfsNames, parseName } from './names.ts';

interface NfsState {
  readonly file: NfsFile;
  readonly memory: OwnMemory;
  readonly writable: boolean;
  sizeBytes: number;
}

type NfsNode = BlockNode<NfsState>;

const MAX_TRANSFER_BYTES = 1024 * 1024;

async function open(node: NfsNode, context: OpenContext): Promise<NfsState> {
  const { layer } = node;
  const options = context.options as unknown as NfsOptions;
  const openWith = (writable: boolean): Promise<NfsFile> => {
    const cached = !node.settings.cache.direct;
    return layer.whileOpening(openNfsFile(options, writable ? 'write' : 'read', cached, layer.endSignal));
  };
  let file: NfsFile;
  try {
    file = await openWith(!node.readOnly);
  } catch (error) {
    const mayRead = context.autoReadOnly && error instanceof BlockError && !node.readOnly;
    if (!mayRead || (error.errno !== E.EACCES && error.errno !== E.EROFS)) throw error;
    node.readOnly = true;
    file = await openWith(false);
  }
  const { size } = await statFile(file);
  return { file, memory: createOwnMemory(), writable: !node.readOnly, sizeBytes: size };
}

async function preadv(
  { state }: NfsNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { library, context, handle, call } = state.file;
  const got = await call(
    (id) => library.pread(context, handle, offset, bytes, library.done, id),
    (result, data) => {
      const inside = Math.min(result, bytes);
      if (inside > 0) copyOut(data, inside, vec);
      return inside;
    },
  );
  if (got === bytes) return;
  // Shorter than the file is: the server's limit; else its end.
  if (got > 0 && offset + got < state.sizeBytes)
    return preadv({ state } as NfsNode, null, offset + got, bytes - got, sliceVector(vec, got, bytes - got));
  fillVector(sliceVector(vec, got, bytes - got), 0);
}

async function pwritev(
  { state }: NfsNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  if (bytes === 0) return;
  const { library, context, handle, call } = state.file;
  // The library may send it after the request was given up: it is memory of the request's own.
  const memory = state.memory.take(bytes);
  copyFromVector(vec, memory.buf);
  let done = 0;
  while (done < bytes) {
    const written = await call(
      (id) =>
        library.pwrite(context, handle, offset + done, bytes - done, memory.addr + done, library.done, id),
      (result) => {
        keep(memory);
        return result;
      },
    );
    if (written === 0) throw ioError(E.EIO);
    done += written;
  }
  state.memory.give(memory);
  state.sizeBytes = Math.max(state.sizeBytes, offset + bytes);
}

/** Names the memory of a call, so that it lives until the callback. */
function keep(_memory: IoMemory): void {}

async function setSize(file: NfsFile, length: number): Promise<void> {
  const { library, context, handle, call } = file;
  await call(
    (id) => library.ftruncate(context, handle, length, library.done, id),
    () => undefined,
  );
}

async function create(layer: BlockLayer, location: NfsOptions, size: number): Promise<void> {
  const file = await openNfsFile(location, 'create', true, layer.endSignal);
  try {
    await setSize(file, size);
  } finally {
    await file.close();
  }
}

export const nfs: BlockDriver<NfsState> = {
  name: 'nfs',
  kind: 'protocol',
  growsWithZeroes: true,
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  ...nfsNames,
  strongOptions: ['server', 'path', 'user', 'group'],
  exactFilename: ({ settings }) => exactName(settings.options),
  creation: sizedFileCreation<NfsOptions>(parseName, create),
  open,
  close: ({ state }) => state.file.close(),
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && !state.writable)
      throw new BlockError('Cannot open a read-only mount as read-write', { errno: E.EACCES });
  },
  reopenCommit(node) {
    if (!node.state.writable) node.readOnly = true;
  },
  cancelInFlight: ({ state }) => state.file.cancel(),
  refreshLimits({ state: { file } }, limits) {
    limits.maxTransfer = Math.min(MAX_TRANSFER_BYTES, file.readMaxBytes, file.writeMaxBytes);
  },
  preadv,
  pwritev,
  async flush({ state: { file } }) {
    const { library, context, handle, call } = file;
    await call(
      (id) => library.fsync(context, handle, library.done, id),
      () => undefined,
    );
  },
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.data | Status.offsetValid, map: offset, file: node };
  },
  async truncate({ state }, _guard, length, _exact, prealloc) {
    if (prealloc !== 'off')
      throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
    await setSize(state.file, length);
    state.sizeBytes = length;
  },
  async getLength({ state }) {
    state.sizeBytes = (await statFile(state.file)).size;
    return state.sizeBytes;
  },
  // A query of all nodes does not wait for a server that is away.
  getAllocatedFileSize: async ({ state }) => (await soon(statFile(state.file)))?.used ?? -1,
};
