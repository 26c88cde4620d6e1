/**
 * How a file is open: read-only or read-write, through the page cache or not; and changing that while it is in use.
 *
 * With auto-read-only a file is open read-write only while somebody may write to it, so a node on a file that cannot
 * be written works until a writer comes. A change opens the file once more and puts the new description in the place
 * of the old one (dup3), so the number of the descriptor never changes and a request that is under way on another
 * thread finishes on either of the two. Image locks belong to the description: the new one gets them before the old
 * one goes.
 */

import { closeSync, constants } from 'node:fs';
import * as ffi from '../../../aio/ffi.ts';
import { openHostFile } from '../../../aio/host/files.ts';
import { allocateIoMemory } from '../../../aio/memory.ts';
import type { ReopenContext } from '../../../block/contract/reopen.ts';
import { Perm, type PermissionPair } from '../../../block/contract/request.ts';
import type { NodeSettings } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../errors/error.ts';
import type { FileNode, FileState } from './io.ts';

/** What of a description cannot be changed once it is open. */
interface Access {
  readonly writable: boolean;
  readonly direct: boolean;
}

/** A description that is to take the place of the one in use. */
export interface NewDescription extends Access {
  readonly fd: number;
}

/** Permissions that make their holder a writer. */
const WRITER = Perm.write | Perm.writeUnchanged | Perm.resize;

/** Opens the file; the descriptor is the caller's. */
export function openDescription(filename: string, { writable, direct }: Access): number {
  const access = writable ? constants.O_RDWR : constants.O_RDONLY;
  let fd: number;
  try {
    fd = openHostFile(filename, access | (direct ? constants.O_DIRECT : 0));
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === E.EDEADLK)
      throw new BlockError(`Could not open '${filename}': It is an export of this process itself`, { errno });
    throw errnoError(`Could not open '${filename}'`, errno);
  }
  // The ring answers EAGAIN instead of waiting where the flag is set.
  ffi.setBlocking(fd);
  return fd;
}

/** The access that settings and permissions ask for. */
export function wantedAccess(settings: NodeSettings, perm: number): Access {
  const writable = !settings.readOnly && (!settings.autoReadOnly || (perm & WRITER) !== 0);
  return { writable, direct: settings.cache.direct };
}

/** The smallest request O_DIRECT takes here: the device's block size, or what a read accepts. */
export function alignmentOf(fd: number, direct: boolean, isDevice: boolean): number {
  if (!direct) return 1;
  if (isDevice) {
    const sector = ffi.ioctlGetI32(fd, ffi.BLKSSZGET);
    if (sector > 0) return sector;
  }
  const memory = allocateIoMemory(4096);
  for (const alignment of [512, 1024, 2048, 4096]) {
    if (ffi.pread(fd, memory.addr, alignment, 0) !== -E.EINVAL) return alignment;
  }
  return 4096;
}

function isSame(one: Access, other: Access): boolean {
  return one.writable === other.writable && one.direct === other.direct;
}

/** Opens what `wanted` needs, unless the file is open like that or about to be. */
function request({ state }: FileNode, wanted: Access): void {
  if (state.next !== null && isSame(state.next, wanted)) return;
  forget(state);
  if (isSame(state, wanted)) return;
  state.next = { fd: openDescription(state.filename, wanted), ...wanted };
}

function forget(state: FileState): void {
  if (state.next !== null) closeSync(state.next.fd);
  state.next = null;
}

// ---- permissions ---------------------------------------------------------------------------------------------

/** Takes the locks that new permissions need, and opens the file in another way if they need that. */
export function checkPermissions(node: FileNode, wanted: PermissionPair): void {
  const state = node.state as FileState | undefined;
  if (state === undefined) return;
  request(node, wantedAccess(node.settings, wanted.perm));
  state.locks?.acquire(wanted);
  if (state.next !== null) state.locks?.copyTo(state.next.fd, wanted);
}

export function setPermissions(node: FileNode, wanted: PermissionPair): void {
  const state = node.state as FileState | undefined;
  if (state === undefined) return;
  const { next } = state;
  if (next !== null) {
    const result = ffi.dupOnto(next.fd, state.fd);
    // The old description still serves what it served; a writer meets its error with the first write.
    if (result >= 0) use(state, next);
    forget(state);
  }
  state.locks?.settle(wanted);
}

export function abortPermissions({ state }: FileNode): void {
  if ((state as FileState | undefined) === undefined) return;
  forget(state);
  state.locks?.rollback();
}

function use(state: FileState, { writable, direct }: Access): void {
  // It is another description, perhaps of another file.
  state.residency?.close();
  state.residency = null;
  const changes = state.direct !== direct;
  state.writable = writable;
  if (!changes) return;
  state.direct = direct;
  state.alignment = alignmentOf(state.fd, direct, state.isDevice);
  state.inlineWrites = !direct && state.mayInline;
  state.inlineReads = state.inlineWrites;
  state.skipInlineReads = 0;
}

// ---- reopening -----------------------------------------------------------------------------------------------

/** Tries the new way of opening, before anything changes; the permissions that follow decide what is used. */
export async function reopenPrepare(node: FileNode, { settings }: ReopenContext): Promise<void> {
  const { perm } = node.parents.reduce((all, edge) => ({ perm: all.perm | edge.perm }), { perm: 0 });
  // Users that write do not fit a read-only node, which is found out later and has a text of its own.
  request(node, wantedAccess(settings, perm));
  if (settings.readOnly && !node.readOnly) await flushed(node);
}

export function reopenAbort({ state }: FileNode): void {
  forget(state);
}

async function flushed({ state }: FileNode): Promise<void> {
  if (!state.writable) return;
  const result = await state.engine.fdatasync(state.fd);
  if (result < 0) throw ioError(-result);
}
