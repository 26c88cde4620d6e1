/**
 * libnfs 4: bindings, and nothing of what is done with them.
 *
 * The library has no threads of its own here: its callbacks are made within `service` and `destroyContext`. Later major
 * versions have other arguments: the library is asked for by its version. Source of the facts: libnfs.h of libnfs 4.0.
 */

import koffi from 'koffi';
import type { IoVector } from '../memory.ts';
import { loadHostLibrary } from './host-library.ts';

type Finish = (result: number, data: number) => void;

function bind(finish: (id: number, result: number, data: number) => void) {
  const library = loadHostLibrary('nfs', 'libnfs.so.13', 'libnfs13');
  const p = 'uintptr_t';
  const done = koffi.register(
    (result: number, _context: unknown, data: number | bigint, id: number | bigint) =>
      finish(Number(id), result, Number(data)),
    koffi.pointer(koffi.proto('void (int result, uintptr_t context, uintptr_t data, uintptr_t id)')),
  );
  const call = (name: string, result: string, types: readonly string[]) =>
    library.func(name, result, [...types]) as (...args: readonly unknown[]) => number;
  return {
    done,
    initContext: call('nfs_init_context', p, []),
    destroyContext: call('nfs_destroy_context', 'void', [p]),
    fd: call('nfs_get_fd', 'int', [p]),
    events: call('nfs_which_events', 'int', [p]),
    service: call('nfs_service', 'int', [p, 'int']),
    error: library.func('nfs_get_error', 'str', [p]) as (context: number) => string | null,
    setUid: call('nfs_set_uid', 'void', [p, 'int']),
    setGid: call('nfs_set_gid', 'void', [p, 'int']),
    setSynCount: call('nfs_set_tcp_syncnt', 'void', [p, 'int']),
    setReadahead: call('nfs_set_readahead', 'void', [p, 'uint32']),
    setPageCache: call('nfs_set_pagecache', 'void', [p, 'uint32']),
    setDebug: call('nfs_set_debug', 'void', [p, 'int']),
    setAutoReconnect: call('nfs_set_autoreconnect', 'void', [p, 'int']),
    readMax: call('nfs_get_readmax', 'uint64', [p]),
    writeMax: call('nfs_get_writemax', 'uint64', [p]),
    mount: call('nfs_mount_async', 'int', [p, 'str', 'str', 'void*', p]),
    open: call('nfs_open_async', 'int', [p, 'str', 'int', 'void*', p]),
    create: call('nfs_creat_async', 'int', [p, 'str', 'int', 'void*', p]),
    close: call('nfs_close_async', 'int', [p, p, 'void*', p]),
    stat: call('nfs_fstat64_async', 'int', [p, p, 'void*', p]),
    pread: call('nfs_pread_async', 'int', [p, p, 'uint64', 'uint64', 'void*', p]),
    pwrite: call('nfs_pwrite_async', 'int', [p, p, 'uint64', 'uint64', p, 'void*', p]),
    fsync: call('nfs_fsync_async', 'int', [p, p, 'void*', p]),
    ftruncate: call('nfs_ftruncate_async', 'int', [p, p, 'uint64', 'void*', p]),
  };
}

export type Libnfs = ReturnType<typeof bind>;

let bound: Libnfs | null = null;
const waiting = new Map<number, Finish>();
let lastId = 0;

/** The library, loaded at the first call; throws a BlockError that names the Debian package where there is none. */
export function libnfs(): Libnfs {
  bound ??= bind((id, result, data) => {
    const finish = waiting.get(id);
    waiting.delete(id);
    finish?.(result, data);
  });
  return bound;
}

/** A number for a call, by which `finish` is called once. */
export function nfsCallId(finish: Finish): number {
  waiting.set(++lastId, finish);
  return lastId;
}

/** Forgets a call that could not be begun. */
export function forgetNfsCall(id: number): void {
  waiting.delete(id);
}

const memcpy = koffi.load('libc.so.6').func('memcpy', 'uintptr_t', ['uintptr_t', 'uintptr_t', 'size_t']);

/** Copies the library's memory, which is good within a callback only, to where the reader wants it. */
export function copyOut(address: number, bytes: number, vec: IoVector): void {
  let done = 0;
  for (const { mem, start, length } of vec.segments) {
    const part = Math.min(length, bytes - done);
    if (part <= 0) return;
    memcpy(mem.addr + start, address + done, part);
    done += part;
  }
}
