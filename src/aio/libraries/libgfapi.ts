/**
 * libgfapi, the client of Gluster: bindings, and nothing of what is done with them.
 *
 * All calls but those of the set-up may wait for the network and are for callPooledErrno. The library has threads of its
 * own, which never come here. Source of the facts: glfs.h of GlusterFS 10.
 */

import type { Callable } from '../host/pooled-calls.ts';
import { loadHostLibrary } from './host-library.ts';

function bind() {
  const library = loadHostLibrary('gluster', 'libgfapi.so.0', 'libgfapi0');
  const p = 'uintptr_t';
  const call = (name: string, types: readonly string[]) =>
    library.func(name, 'int', [...types]) as (...args: readonly unknown[]) => number;
  return {
    create: library.func('glfs_new', p, ['str']) as (volume: string) => number | bigint,
    addServer: call('glfs_set_volfile_server', [p, 'str', 'str', 'int']),
    setLogging: call('glfs_set_logging', [p, 'str', 'int']),
    /** For callPooledErrno; these return pointers. */
    pointers: {
      open: library.func('glfs_open', p, [p, 'str', 'int']),
      create: library.func('glfs_creat', p, [p, 'str', 'int', 'int']),
    } satisfies Record<string, Callable>,
    /** For callPooledErrno. */
    pooled: {
      init: library.func('glfs_init', 'int', [p]),
      end: library.func('glfs_fini', 'int', [p]),
      close: library.func('glfs_close', 'int', [p]),
      pread: library.func('glfs_pread', 'int64', [p, p, 'size_t', 'int64', 'int', p]),
      pwrite: library.func('glfs_pwrite', 'int64', [p, p, 'size_t', 'int64', 'int', p, p]),
      fsync: library.func('glfs_fsync', 'int', [p, p, p]),
      ftruncate: library.func('glfs_ftruncate', 'int', [p, 'int64', p, p]),
      fstat: library.func('glfs_fstat', 'int', [p, p]),
      lseek: library.func('glfs_lseek', 'int64', [p, 'int64', 'int']),
      discard: library.func('glfs_discard', 'int', [p, 'int64', 'size_t']),
      zerofill: library.func('glfs_zerofill', 'int', [p, 'int64', 'int64']),
      fallocate: library.func('glfs_fallocate', 'int', [p, 'int', 'int64', 'size_t']),
    } satisfies Record<string, Callable>,
  };
}

export type Libgfapi = ReturnType<typeof bind>;

let bound: Libgfapi | null = null;

/** The library, loaded at the first call; throws a BlockError that names the Debian package where there is none. */
export function libgfapi(): Libgfapi {
  bound ??= bind();
  return bound;
}
