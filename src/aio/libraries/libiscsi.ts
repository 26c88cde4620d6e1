/**
 * libiscsi: bindings, and nothing of what is done with them.
 *
 * The library has no threads of its own: its callbacks are made within `service`, `cancelAll` and calls that begin a
 * command, on the thread that calls. Not for two threads at a time. Source of the facts: iscsi.h and scsi-lowlevel.h of libiscsi 1.19.
 */

import koffi from 'koffi';
import { loadHostLibrary } from './host-library.ts';

/** Called when a command is over; `data` is its struct scsi_task, or of the library's own. */
export type IscsiCallback = (
  context: number | bigint,
  status: number,
  data: number | bigint,
  id: number | bigint,
) => void;

function bind(callback: IscsiCallback) {
  const library = loadHostLibrary('iscsi', 'libiscsi.so.7', 'libiscsi7');
  const p = 'uintptr_t';
  const done = koffi.register(
    callback,
    koffi.pointer(koffi.proto('void (uintptr_t context, int status, uintptr_t data, uintptr_t id)')),
  );
  const call = (name: string, result: string, types: readonly string[]) =>
    library.func(name, result, [...types]) as (
      ...args: readonly (number | string | bigint | unknown)[]
    ) => number;
  const cdb = [p, 'int', 'uint64', 'uint32', 'int', 'int', 'int', 'int', 'int', 'int', 'void*', p, p, 'int'];
  const write = [
    p,
    'int',
    'uint64',
    p,
    'uint32',
    'int',
    'int',
    'int',
    'int',
    'int',
    'int',
    'void*',
    p,
    p,
    'int',
  ];
  return {
    done,
    createContext: call('iscsi_create_context', p, ['str']),
    destroyContext: call('iscsi_destroy_context', 'int', [p]),
    setTargetName: call('iscsi_set_targetname', 'int', [p, 'str']),
    setSessionType: call('iscsi_set_session_type', 'int', [p, 'int']),
    setHeaderDigest: call('iscsi_set_header_digest', 'int', [p, 'int']),
    setCredentials: call('iscsi_set_initiator_username_pwd', 'int', [p, 'str', 'str']),
    setTimeout: call('iscsi_set_timeout', 'int', [p, 'int']),
    connect: call('iscsi_full_connect_async', 'int', [p, 'str', 'int', 'void*', p]),
    fd: call('iscsi_get_fd', 'int', [p]),
    events: call('iscsi_which_events', 'int', [p]),
    service: call('iscsi_service', 'int', [p, 'int']),
    cancelAll: call('iscsi_scsi_cancel_all_tasks', 'void', [p]),
    error: library.func('iscsi_get_error', 'str', [p]) as (context: number) => string | null,
    freeTask: call('scsi_free_scsi_task', 'void', [p]),
    read16: call('iscsi_read16_iov_task', p, cdb),
    write16: call('iscsi_write16_iov_task', p, write),
    synchronizeCache16: call('iscsi_synchronizecache16_task', p, [
      p,
      'int',
      'uint64',
      'uint32',
      'int',
      'int',
      'void*',
      p,
    ]),
    unmap: call('iscsi_unmap_task', p, [p, 'int', 'int', 'int', p, 'int', 'void*', p]),
    writeSame16: call('iscsi_writesame16_task', p, [
      ...[p, 'int', 'uint64', p, 'uint32', 'uint32', 'int', 'int', 'int', 'int', 'void*', p],
    ]),
    lbaStatus: call('iscsi_get_lba_status_task', p, [p, 'int', 'uint64', 'uint32', 'void*', p]),
    readCapacity16: call('iscsi_readcapacity16_task', p, [p, 'int', 'void*', p]),
    inquiry: call('iscsi_inquiry_task', p, [p, 'int', 'int', 'int', 'int', 'void*', p]),
    modeSense6: call('iscsi_modesense6_task', p, [p, 'int', 'int', 'int', 'int', 'int', 'uint8', 'void*', p]),
  };
}

export type Libiscsi = ReturnType<typeof bind>;

/** Of struct scsi_task on 64-bit hosts: sense key and code, and the data that came in. */
const SENSE_KEY_AT = 52;
const SENSE_CODE_AT = 56;
const DATA_BYTES_AT = 64;
const DATA_AT = 72;

export interface Sense {
  readonly key: number;
  readonly code: number;
}

/** The sense of a task that ended in a check condition. */
export function senseOf(task: number): Sense {
  const at = (offset: number): number => koffi.decode(BigInt(task + offset), 'int') as number;
  return { key: at(SENSE_KEY_AT), code: at(SENSE_CODE_AT) };
}

/** A copy of the data of a task. */
export function dataOf(task: number): Buffer {
  const bytes = koffi.decode(BigInt(task + DATA_BYTES_AT), 'int') as number;
  const from = koffi.decode(BigInt(task + DATA_AT), 'uintptr_t') as number | bigint;
  if (bytes <= 0 || Number(from) === 0) return Buffer.alloc(0);
  return Buffer.from(koffi.decode(BigInt(from), koffi.array('uint8', bytes, 'Typed')) as Uint8Array);
}

let bound: Libiscsi | null = null;
const waiting = new Map<number, (status: number, task: number) => void>();
let lastId = 0;

/** The library, loaded at the first call; throws a BlockError that names the Debian package where there is none. */
export function libiscsi(): Libiscsi {
  bound ??= bind((_context, status, data, id) => {
    const finish = waiting.get(Number(id));
    waiting.delete(Number(id));
    finish?.(status, Number(data));
  });
  return bound;
}

/** A number for a command, by which `finish` is called once. */
export function iscsiCommandId(finish: (status: number, task: number) => void): number {
  waiting.set(++lastId, finish);
  return lastId;
}

/** Forgets a command that could not be begun. */
export function forgetIscsiCommand(id: number): void {
  waiting.delete(id);
}
