/**
 * A node as a file: an export over FUSE, mounted over a regular file.
 *
 * Options (QMP reference, BlockExportOptionsFuse): mountpoint, growable, allow-other. Here: one export from its checks
 * to the end. Not here: mounting (mount.ts), the device (session.ts), the requests (operations.ts).
 */

import { closeFd } from '../../aio/ffi.ts';
import { ownMount } from '../../aio/host/own-mounts.ts';
import { Perm } from '../../block/contract/request.ts';
import { CoMutex } from '../../coroutine/co-mutex.ts';
import { BlockError } from '../../errors/error.ts';
import type { ExportHost, ExportType, OptionsOf, RunningExport } from '../contract.ts';
import { checkMountPoint, type FuseMount, mountAt, placeOf } from './mount.ts';
import { type FuseFile, handleRequest, initialMode } from './operations.ts';
import { FuseSession } from './session.ts';

function run(mount: FuseMount, growable: boolean, host: ExportHost, onEnd: () => void): RunningExport {
  const { io, backend, writable, writethrough } = host;
  const file: FuseFile = {
    io,
    backend,
    writable,
    growable,
    writethrough,
    allowOther: mount.allowOther,
    resizing: new CoMutex(),
    mode: initialMode(writable),
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    handles: 0,
  };
  const session = new FuseSession(mount.fd, (...args) => handleRequest(file, ...args));
  session.start();
  return {
    get clientCount() {
      return file.handles;
    },
    // As the original: who has the file open learns that the disk is gone.
    inUse: false,
    setPaused: (paused) => session.setPaused(paused),
    resized: () => session.invalidate(),
    stop: async () => {
      await mount.unmount();
      await session.stop();
      closeFd(mount.fd);
      onEnd();
    },
  };
}

/** Exports as files; their mount points are known to each other. */
export function fuseExportType(): ExportType<'fuse'> {
  /** Places exported, or about to be. */
  const places = new Set<string>();
  return {
    permissions: ({ growable = false }, writable) => ({
      perm:
        Perm.consistentRead |
        (writable ? Perm.write : 0) |
        // A file can be cut and lengthened by whoever may write to it.
        (writable || growable ? Perm.resize : 0),
      shared: Perm.all,
    }),

    async start(options: OptionsOf<'fuse'>, host: ExportHost): Promise<RunningExport> {
      const { mountpoint, growable = false, 'allow-other': allowOther = 'auto' } = options;
      const place = await placeOf(mountpoint, (at) => places.has(at));
      if (places.has(place)) throw new BlockError(`There already is a FUSE export on '${mountpoint}'`);
      places.add(place);
      try {
        await checkMountPoint(mountpoint, place);
        const mount = await mountAt(mountpoint, place, allowOther);
        const disown = ownMount(place);
        return run(mount, growable, host, () => {
          disown();
          places.delete(place);
        });
      } catch (error) {
        places.delete(place);
        throw error;
      }
    },
  };
}
