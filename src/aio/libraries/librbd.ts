/**
 * librbd and librados, the clients of Ceph: bindings, and nothing of what is done with them.
 *
 * Functions return 0 or more, or -errno. Handles are addresses. What may wait for the network is for callPooled
 * (`pooled` below); the others return at once. Source of the facts: librbd.h and librados.h of Ceph 16.2.
 */

import koffi from 'koffi';
import type { Callable } from '../host/pooled-calls.ts';
import { loadHostLibrary } from './host-library.ts';

function bind() {
  const rados = loadHostLibrary('rbd', 'librados.so.2', 'librados2');
  const rbd = loadHostLibrary('rbd', 'librbd.so.1', 'librbd1');
  const diffCallback = koffi.pointer(
    koffi.proto('int (uint64_t offset, size_t bytes, int exists, uintptr_t argument)'),
  );
  const p = 'uintptr_t';
  return {
    /** For callPooled. */
    pooled: {
      confReadFile: rados.func('rados_conf_read_file', 'int', [p, 'str']),
      connect: rados.func('rados_connect', 'int', [p]),
      shutdown: rados.func('rados_shutdown', 'void', [p]),
      ioctxCreate: rados.func('rados_ioctx_create', 'int', [p, 'str', p]),
      namespaceExists: rbd.func('rbd_namespace_exists', 'int', [p, 'str', p]),
      open: rbd.func('rbd_open', 'int', [p, 'str', p, 'str']),
      openReadOnly: rbd.func('rbd_open_read_only', 'int', [p, 'str', p, 'str']),
      close: rbd.func('rbd_close', 'int', [p]),
      create: rbd.func('rbd_create', 'int', [p, 'str', 'uint64', p]),
      remove: rbd.func('rbd_remove', 'int', [p, 'str']),
      resize: rbd.func('rbd_resize', 'int', [p, 'uint64']),
      stat: rbd.func('rbd_stat', 'int', [p, p, 'size_t']),
      getSize: rbd.func('rbd_get_size', 'int', [p, p]),
      getFeatures: rbd.func('rbd_get_features', 'int', [p, p]),
      getFlags: rbd.func('rbd_get_flags', 'int', [p, p]),
      diffIterate: rbd.func('rbd_diff_iterate2', 'int', [
        ...[p, 'str', 'uint64', 'uint64', 'uint8', 'uint8'],
        diffCallback,
        p,
      ]),
      encryptionLoad: rbd.func('rbd_encryption_load', 'int', [p, 'int', p, 'size_t']),
      encryptionFormat: rbd.func('rbd_encryption_format', 'int', [p, 'int', p, 'size_t']),
      snapList: rbd.func('rbd_snap_list', 'int', [p, p, p]),
      snapCreate: rbd.func('rbd_snap_create', 'int', [p, 'str']),
      snapRemove: rbd.func('rbd_snap_remove', 'int', [p, 'str']),
      snapRollback: rbd.func('rbd_snap_rollback', 'int', [p, 'str']),
      snapSet: rbd.func('rbd_snap_set', 'int', [p, 'str']),
    } satisfies Record<string, Callable>,
    snapListEnd: rbd.func('rbd_snap_list_end', 'void', [p]),
    radosCreate: rados.func('rados_create', 'int', [p, 'str']) as (cell: number, id: string | null) => number,
    confSet: rados.func('rados_conf_set', 'int', [p, 'str', 'str']) as (
      cluster: number,
      name: string,
      value: string,
    ) => number,
    confGet: rados.func('rados_conf_get', 'int', [p, 'str', p, 'size_t']) as (
      cluster: number,
      name: string,
      text: number,
      bytes: number,
    ) => number,
    setNamespace: rados.func('rados_ioctx_set_namespace', 'void', [p, 'str']) as (
      ioctx: number,
      namespace: string,
    ) => void,
    ioctxDestroy: rados.func('rados_ioctx_destroy', 'void', [p]) as (ioctx: number) => void,
    setNotification: rbd.func('rbd_set_image_notification', 'int', [p, 'int', 'int']) as (
      image: number,
      fd: number,
      type: number,
    ) => number,
    pollEvents: rbd.func('rbd_poll_io_events', 'int', [p, p, 'int']) as (
      image: number,
      completions: number,
      count: number,
    ) => number,
    createCompletion: rbd.func('rbd_aio_create_completion', 'int', [p, p, p]) as (
      argument: number,
      callback: number,
      cell: number,
    ) => number,
    returnValue: rbd.func('rbd_aio_get_return_value', 'int64', [p]) as (completion: number) => number,
    release: rbd.func('rbd_aio_release', 'void', [p]) as (completion: number) => void,
    aioRead: rbd.func('rbd_aio_read', 'int', [p, 'uint64', 'size_t', p, p]) as AioData,
    aioWrite: rbd.func('rbd_aio_write', 'int', [p, 'uint64', 'size_t', p, p]) as AioData,
    aioDiscard: rbd.func('rbd_aio_discard', 'int', [p, 'uint64', 'uint64', p]) as (
      image: number,
      offset: number,
      bytes: number,
      completion: number,
    ) => number,
    aioWriteZeroes: rbd.func('rbd_aio_write_zeroes', 'int', [
      ...[p, 'uint64', 'size_t', p, 'int', 'int'],
    ]) as (
      image: number,
      offset: number,
      bytes: number,
      completion: number,
      zeroFlags: number,
      opFlags: number,
    ) => number,
    aioFlush: rbd.func('rbd_aio_flush', 'int', [p, p]) as (image: number, completion: number) => number,
  };
}

type AioData = (image: number, offset: number, bytes: number, addr: number, completion: number) => number;

export type Librbd = ReturnType<typeof bind>;

export const EVENT_TYPE_EVENTFD = 2;
export const WRITE_ZEROES_THICK = 1;
export const FEATURE_FAST_DIFF = 16;
export const FLAG_FAST_DIFF_INVALID = 2;
export const ENCRYPTION_FORMATS = { luks: 0, luks2: 1 } as const;
export const ENCRYPTION_ALGORITHMS = { 'aes-128': 0, 'aes-256': 1 } as const;

let bound: Librbd | null = null;

/** The libraries, loaded at the first call; throws a BlockError that names the Debian package where there is none. */
export function librbd(): Librbd {
  bound ??= bind();
  return bound;
}
