/**
 * What requests for the exported file mean.
 *
 * Plain reads and writes are answered in the turn in which they came, where the node can do that; everything else runs
 * in one async function a request. Sizes, modes and error numbers are those of the original (run side by side).
 */

import type { BlockBackend } from '../../block/backend.ts';
import type { BackendIo } from '../../block/contract/backend-io.ts';
import { Req } from '../../block/contract/request.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import type { CoMutex } from '../../coroutine/co-mutex.ts';
import { E } from '../../errors/errno.ts';
import { errnoOf, ioError } from '../../errors/error.ts';
import {
  AttrValid,
  In,
  InitFlag,
  InitFlag2,
  MAX_IO_BYTES,
  MAX_IO_PAGES,
  Opcode,
  OpenFlag,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  ROOT_INODE,
  readU64,
  writeU64,
} from './protocol.ts';
import { DATA_AT, dataVector, type FuseRequest, type FuseSession } from './session.ts';

const S_IFREG = 0o100000;
const MODE_BITS = 0o7777;
const OWNER_BITS = 0o700;
const WRITE_BITS = 0o222;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const SECTOR_BYTES = 512;
/** Most that is zeroed or discarded in one go: long ones must not hold up the end of the export. */
const MAX_EFFECT_BYTES = 1024 ** 3;
/** Requests the kernel keeps under way for asynchronous I/O, and the mark from which it calls the disk congested. */
const MAX_BACKGROUND = 128;
const CONGESTION_THRESHOLD = 96;
const NAME_MAX = 255;

/** The exported file. */
export interface FuseFile {
  readonly io: BackendIo;
  readonly backend: BlockBackend;
  readonly writable: boolean;
  readonly growable: boolean;
  readonly writethrough: boolean;
  readonly allowOther: boolean;
  /** Growing and cutting, one after another. */
  readonly resizing: CoMutex;
  mode: number;
  uid: number;
  gid: number;
  /** Files that are open. */
  handles: number;
}

/** The file's mode, S_IFREG included, when nobody has changed it. */
export function initialMode(writable: boolean): number {
  return S_IFREG | 0o400 | (writable ? 0o200 : 0);
}

/** Handles one request; see HandleRequest. */
export function handleRequest(
  file: FuseFile,
  session: FuseSession,
  request: FuseRequest,
  opcode: number,
): void {
  switch (opcode) {
    case Opcode.READ:
      read(file, session, request);
      break;
    case Opcode.WRITE:
      write(file, session, request);
      break;
    case Opcode.FORGET:
    case Opcode.BATCH_FORGET:
      session.drop(request);
      break;
    default:
      void answerLater(file, session, request, opcode);
  }
}

// ---- data ----------------------------------------------------------------------------------------------------

function read(file: FuseFile, session: FuseSession, request: FuseRequest): void {
  const { view } = request;
  const offset = readU64(view, In.ioOffset);
  const wanted = Math.min(view.getUint32(In.ioSize, true), MAX_IO_BYTES);
  const bytes = Math.max(0, Math.min(wanted, file.backend.node.totalBytes - offset));
  const vector = dataVector(request, bytes);
  if (bytes === 0 || file.io.tryPreadv(offset, bytes, vector)) {
    session.answerData(request, bytes);
    return;
  }
  file.io.preadv(offset, bytes, vector, 0).then(
    () => session.answerData(request, bytes),
    (error: unknown) => session.answer(request, errnoOf(error)),
  );
}

function write(file: FuseFile, session: FuseSession, request: FuseRequest): void {
  const { view } = request;
  const offset = readU64(view, In.ioOffset);
  const bytes = view.getUint32(In.ioSize, true);
  if (!file.writable || bytes > request.bytes - DATA_AT) {
    session.answer(request, file.writable ? E.EINVAL : E.EACCES);
    return;
  }
  const room = file.backend.node.totalBytes - offset;
  if (bytes > room) {
    void writeBehindEnd(file, session, request, offset, bytes);
    return;
  }
  const vector = dataVector(request, bytes);
  if (!file.writethrough && file.io.tryPwritev(offset, bytes, vector)) {
    answerWritten(session, request, bytes);
    return;
  }
  file.io.pwritev(offset, bytes, vector, writeFlags(file)).then(
    () => answerWritten(session, request, bytes),
    (error: unknown) => session.answer(request, errnoOf(error)),
  );
}

function writeFlags({ writethrough }: FuseFile): number {
  return writethrough ? Req.fua : 0;
}

function answerWritten(session: FuseSession, request: FuseRequest, bytes: number): void {
  request.view.setUint32(DATA_AT, bytes, true);
  request.view.setUint32(DATA_AT + 4, 0, true);
  session.answerData(request, 8);
}

/** A write that the file is too short for: it grows, or takes what fits. */
async function writeBehindEnd(
  file: FuseFile,
  session: FuseSession,
  request: FuseRequest,
  offset: number,
  bytes: number,
): Promise<void> {
  try {
    if (file.growable) await grow(file, offset + bytes);
    const written = Math.min(bytes, file.backend.node.totalBytes - offset);
    if (written <= 0) throw ioError(E.EIO);
    await file.io.pwritev(offset, written, dataVector(request, written), writeFlags(file));
    answerWritten(session, request, written);
  } catch (error) {
    session.answer(request, errnoOf(error));
  }
}

/** Makes the file at least `length` bytes long; what is new reads as zeroes. */
function grow(file: FuseFile, length: number): Promise<void> {
  const { backend } = file;
  return file.resizing.with('grow', async () => {
    // Somebody else may have been faster.
    if (length > backend.node.totalBytes) await backend.truncate(length, true, 'off', true);
  });
}

// ---- the rest ------------------------------------------------------------------------------------------------

async function answerLater(
  file: FuseFile,
  session: FuseSession,
  request: FuseRequest,
  opcode: number,
): Promise<void> {
  let bytes: number;
  try {
    bytes = await carryOut(file, request, opcode);
  } catch (error) {
    session.answer(request, errnoOf(error));
    return;
  }
  session.answerData(request, bytes);
}

/** Carries out a request; returns how many bytes its data area answers with. Throws with the errno to answer. */
async function carryOut(file: FuseFile, request: FuseRequest, opcode: number): Promise<number> {
  switch (opcode) {
    case Opcode.INIT:
      return init(request);
    case Opcode.GETATTR:
      return await attributes(file, request);
    case Opcode.SETATTR:
      await setAttributes(file, request);
      return await attributes(file, request);
    case Opcode.OPEN:
      file.handles++;
      return open(request);
    case Opcode.RELEASE:
      file.handles--;
      return 0;
    case Opcode.FSYNC:
    case Opcode.FLUSH:
      await file.io.flush();
      return 0;
    case Opcode.STATFS:
      return statFs(request);
    case Opcode.FALLOCATE:
      await fallocate(file, request);
      return 0;
    case Opcode.LSEEK:
      return await seek(file, request);
    case Opcode.DESTROY:
      return 0;
    default:
      throw ioError(E.ENOSYS);
  }
}

function init({ view }: FuseRequest): number {
  const major = view.getUint32(In.initMajor, true);
  const minor = view.getUint32(In.initMinor, true);
  const readahead = view.getUint32(In.initReadahead, true);
  const offered = view.getUint32(In.initFlags, true);
  const offered2 = (offered & InitFlag.extended) !== 0 ? view.getUint32(In.initFlags2, true) : 0;
  if (major < PROTOCOL_MAJOR) throw ioError(E.EPROTO);
  const wanted =
    InitFlag.asyncRead |
    InitFlag.atomicTruncate |
    InitFlag.bigWrites |
    InitFlag.asyncDirectIo |
    InitFlag.maxPages |
    InitFlag.extended;
  const bytes = 64;
  clearData(view, bytes);
  view.setUint32(DATA_AT, PROTOCOL_MAJOR, true);
  view.setUint32(DATA_AT + 4, Math.min(minor, PROTOCOL_MINOR), true);
  view.setUint32(DATA_AT + 8, readahead, true);
  view.setUint32(DATA_AT + 12, (offered & wanted) >>> 0, true);
  view.setUint16(DATA_AT + 16, MAX_BACKGROUND, true);
  view.setUint16(DATA_AT + 18, CONGESTION_THRESHOLD, true);
  view.setUint32(DATA_AT + 20, MAX_IO_BYTES, true);
  view.setUint32(DATA_AT + 24, 1, true);
  view.setUint16(DATA_AT + 28, MAX_IO_PAGES, true);
  view.setUint32(DATA_AT + 32, offered2 & InitFlag2.directIoMmap, true);
  return bytes;
}

function clearData(view: DataView, bytes: number): void {
  for (let at = DATA_AT; at < DATA_AT + bytes; at += 4) view.setUint32(at, 0);
}

/** struct fuse_attr_out: valid for a second. */
async function attributes(file: FuseFile, { view }: FuseRequest): Promise<number> {
  const { backend } = file;
  const sizeBytes = backend.node.totalBytes;
  const allocated = await wrapped.getAllocatedFileSize(backend.node).catch(() => -1);
  const nowS = Math.floor(Date.now() / 1000);
  const bytes = 104;
  clearData(view, bytes);
  writeU64(view, DATA_AT, 1);
  const attr = DATA_AT + 16;
  writeU64(view, attr, ROOT_INODE);
  writeU64(view, attr + 8, sizeBytes);
  writeU64(view, attr + 16, Math.ceil((allocated <= 0 ? sizeBytes : allocated) / SECTOR_BYTES));
  for (const at of [24, 32, 40]) writeU64(view, attr + at, nowS);
  view.setUint32(attr + 60, file.mode, true);
  view.setUint32(attr + 64, 1, true);
  view.setUint32(attr + 68, file.uid, true);
  view.setUint32(attr + 72, file.gid, true);
  view.setUint32(attr + 80, file.io.requestAlignmentBytes, true);
  return bytes;
}

async function setAttributes(file: FuseFile, { view }: FuseRequest): Promise<void> {
  const valid = view.getUint32(In.setattrValid, true);
  const { size, mode, uid, gid, fileHandle, lockOwner, killSuidGid } = AttrValid;
  const known = size | mode | fileHandle | lockOwner | killSuidGid | (file.allowOther ? uid | gid : 0);
  // Times, and without allow-other the owner.
  if ((valid & ~known) !== 0) throw ioError(E.ENOTSUP);
  const newMode = view.getUint32(In.setattrMode, true) & MODE_BITS;
  if ((valid & mode) !== 0) {
    // Nobody else gets in, whatever the mode says: rather refuse than look permissive.
    if (!file.allowOther && (newMode & ~OWNER_BITS) !== 0) throw ioError(E.EPERM);
    if (!file.writable && (newMode & WRITE_BITS) !== 0) throw ioError(E.EROFS);
  }
  if ((valid & size) !== 0) {
    if (!file.writable) throw ioError(E.EACCES);
    const length = readU64(view, In.setattrSize);
    await file.resizing.with('truncate', () => file.backend.truncate(length, true, 'off', true));
  }
  if ((valid & mode) !== 0) file.mode = S_IFREG | newMode;
  if ((valid & uid) !== 0) file.uid = view.getUint32(In.setattrUid, true);
  if ((valid & gid) !== 0) file.gid = view.getUint32(In.setattrGid, true);
}

function open({ view }: FuseRequest): number {
  clearData(view, 16);
  view.setUint32(DATA_AT + 8, OpenFlag.directIo | OpenFlag.parallelDirectWrites, true);
  return 16;
}

/** struct fuse_statfs_out: nothing is known of space. */
function statFs({ view }: FuseRequest): number {
  clearData(view, 80);
  view.setUint32(DATA_AT + 40, SECTOR_BYTES, true);
  view.setUint32(DATA_AT + 44, NAME_MAX, true);
  view.setUint32(DATA_AT + 48, SECTOR_BYTES, true);
  return 80;
}

async function fallocate(file: FuseFile, { view }: FuseRequest): Promise<void> {
  const offset = readU64(view, In.fallocateOffset);
  const length = readU64(view, In.fallocateLength);
  const mode = view.getUint32(In.fallocateMode, true);
  const { backend, io } = file;
  if (!file.writable) throw ioError(E.EACCES);
  if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0 && mode === (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
    await inPieces(file, offset, length, (at, bytes) =>
      io.pwriteZeroes(at, bytes, Req.mayUnmap | writeFlags(file)),
    );
  } else if ((mode & ~FALLOC_FL_KEEP_SIZE) === FALLOC_FL_ZERO_RANGE) {
    const grows = (mode & FALLOC_FL_KEEP_SIZE) === 0 && offset + length > backend.node.totalBytes;
    if (grows && !file.growable) throw ioError(E.EIO);
    if (grows) await grow(file, offset + length);
    await inPieces(file, offset, length, (at, bytes) => io.pwriteZeroes(at, bytes, writeFlags(file)));
  } else if (mode === 0 && offset >= backend.node.totalBytes) {
    await file.resizing.with('fallocate', async () => {
      // Only what is new can be had: what is there may be allocated or not.
      if (offset < backend.node.totalBytes) throw ioError(E.ENOTSUP);
      await backend.truncate(offset, true, 'off', true);
      await backend.truncate(offset + length, true, 'falloc');
    });
  } else throw ioError(E.ENOTSUP);
}

/** Goes over the part of a range that is inside the file. */
async function inPieces(
  file: FuseFile,
  offset: number,
  length: number,
  work: (at: number, bytes: number) => Promise<void>,
): Promise<void> {
  const end = Math.min(offset + length, file.backend.node.totalBytes);
  for (let at = offset; at < end; ) {
    const bytes = Math.min(end - at, MAX_EFFECT_BYTES);
    await work(at, bytes);
    at += bytes;
  }
}

/** struct fuse_lseek_out: where the next data or hole is. */
async function seek(file: FuseFile, { view }: FuseRequest): Promise<number> {
  const start = readU64(view, In.lseekOffset);
  const whence = view.getUint32(In.lseekWhence, true);
  if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw ioError(E.EINVAL);
  const sizeBytes = file.backend.node.totalBytes;
  for (let at = start; at < sizeBytes; ) {
    const extent = await file.io.blockStatus(at, sizeBytes - at);
    if (extent.bytes === 0) break;
    if (extent.zero === (whence === SEEK_HOLE)) return answerOffset(view, at);
    at += extent.bytes;
  }
  // Behind the last data is a hole, which ends with the file.
  if (start > sizeBytes || whence === SEEK_DATA) throw ioError(E.ENXIO);
  return answerOffset(view, sizeBytes);
}

function answerOffset(view: DataView, offset: number): number {
  writeU64(view, DATA_AT, offset);
  return 8;
}
