/**
 * file, host_device and host_cdrom: a regular file, a block or character device of the host, a drive with a medium.
 *
 * No format of their own. Options (QMP reference, BlockdevOptionsFile): filename, locking=auto|on|off,
 * aio=threads|native|io_uring, drop-cache, cache.direct (O_DIRECT), cache.no-flush; aio-max-batch and
 * x-check-cache-dropped are accepted and have nothing to act on.
 * Opening and reopening the descriptor is in file/access.ts, reads and writes are in file/io.ts, resizing in file-resize.ts, making new files in file/create.ts.
 * Holes: block status asks SEEK_DATA/SEEK_HOLE; discards and unmapping zero writes punch holes.
 */

import { closeSync, fstatSync, type Stats } from 'node:fs';
import type { EngineKind } from '../../../aio/engine.ts';
import * as ffi from '../../../aio/ffi.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { type BlockLimits, type BlockStatus, Req, Status } from '../../../block/contract/request.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, ioError } from '../../../errors/error.ts';
import { existingCreation } from '../protocol-create.ts';
import {
  abortPermissions,
  alignmentOf,
  checkPermissions,
  openDescription,
  reopenAbort,
  reopenPrepare,
  setPermissions,
  wantedAccess,
} from './access.ts';
import { beginWriteback, copyRangeFrom, copyRangeTo } from './copy-range.ts';
import { fileCreation } from './create.ts';
import {
  type FileNode,
  type FileState,
  flush,
  lendPages,
  preadv,
  pwritev,
  tryPreadv,
  tryPwritev,
} from './io.ts';
import { FileLocks, probeOfdLocks } from './locks.ts';
import { getLength, truncate, truncateNow } from './resize.ts';

interface FileOptions {
  readonly filename?: string;
  readonly 'pr-manager'?: string;
  readonly locking?: 'auto' | 'on' | 'off';
  readonly aio?: 'threads' | 'native' | 'io_uring';
}

// ---- open, close ---------------------------------------------------------------------------------------------

function makeOpen(driverName: string, accepts: (stat: Stats) => boolean, requirement: string) {
  return async function open(node: FileNode, context: OpenContext): Promise<FileState> {
    const options = context.options as unknown as FileOptions;
    const { filename = '' } = options;
    if (filename === '') throw new BlockError(`The '${driverName}' block driver requires a file name`);
    if (options['pr-manager'] !== undefined) node.layer.checkPrManager(options['pr-manager']);
    const { direct } = node.settings.cache;
    const kind: EngineKind =
      options.aio === 'threads' ? 'threads' : options.aio === undefined ? context.engine.kind : 'io_uring';
    const engine = context.engineOf(kind);
    // Nobody uses the node yet.
    const access = wantedAccess(node.settings, 0);
    const fd = openDescription(filename, access);
    try {
      const stat = fstatSync(fd);
      if (!accepts(stat))
        throw new BlockError(`'${driverName}' driver requires '${filename}' to be ${requirement}`);
      // In the original's order: what cannot be opened is told first.
      if (options.aio === 'native' && !direct) {
        throw new BlockError(
          'aio=native was specified, but it requires cache.direct=on, which was not specified.',
        );
      }
      const isDevice = !stat.isFile();
      return {
        fd,
        filename,
        engine,
        isDevice,
        ...access,
        next: null,
        locks: openLocks(fd, filename, options.locking ?? 'auto', node.layer.mayWaitInCalls),
        mayInline: options.aio !== 'threads',
        inlineWrites: !direct && options.aio !== 'threads',
        slowWriteMs: node.layer.slowWriteMs,
        inlineReads: !direct && options.aio !== 'threads',
        skipInlineReads: 0,
        canPunchHole: true,
        canZeroRange: true,
        avoidInlineUntilMs: 0,
        alignment: alignmentOf(fd, direct, isDevice),
        lastSource: null,
        writeback: { bytes: 0, running: null },
        residency: null,
        stats: { discardOk: 0, discardFailed: 0, discardBytesOk: 0 },
      };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  };
}

function openLocks(
  fd: number,
  filename: string,
  locking: 'auto' | 'on' | 'off',
  maySearch: boolean,
): FileLocks | null {
  if (locking === 'off') return null;
  const probe = probeOfdLocks(fd);
  if (probe === 0) return new FileLocks(fd, filename, maySearch);
  if (locking === 'auto') return null;
  throw errnoError(`Image locking of '${filename}' is not possible`, -probe);
}

async function close(node: FileNode): Promise<void> {
  await node.state.writeback.running;
  node.state.residency?.close();
  node.state.lastSource = null;
  // Closing the description drops its locks.
  ffi.closeFd(node.state.fd);
}

// ---- zeroes, discard -----------------------------------------------------------------------------------------

function isUnsupported(errno: number): boolean {
  return errno === E.ENOTSUP || errno === E.ENOTTY || errno === E.ENOSYS || errno === E.ENODEV;
}

async function pwriteZeroes(
  node: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const { state } = node;
  const keepSize = state.isDevice ? ffi.FALLOC_FL_KEEP_SIZE : 0;
  const inside = offset + bytes <= node.totalBytes;
  if ((flags & Req.mayUnmap) !== 0 && state.canPunchHole && inside) {
    const result = await state.engine.fallocate(
      state.fd,
      ffi.FALLOC_FL_PUNCH_HOLE | ffi.FALLOC_FL_KEEP_SIZE,
      offset,
      bytes,
    );
    if (result === 0) return;
    if (!isUnsupported(-result)) throw ioError(-result);
    state.canPunchHole = false;
  }
  if (state.canZeroRange) {
    const result = await state.engine.fallocate(state.fd, ffi.FALLOC_FL_ZERO_RANGE | keepSize, offset, bytes);
    if (result === 0) return;
    // EINVAL: a device that cannot, or a range that is not aligned to its blocks.
    if (!isUnsupported(-result) && result !== -E.EINVAL) throw ioError(-result);
    if (isUnsupported(-result)) state.canZeroRange = false;
  }
  throw ioError(E.ENOTSUP);
}

async function pdiscard(node: FileNode, _guard: unknown, offset: number, bytes: number): Promise<void> {
  const { state } = node;
  const result = state.isDevice
    ? await ffi.ioctlRangeAsync(state.fd, ffi.BLKDISCARD, offset, bytes)
    : await state.engine.fallocate(
        state.fd,
        ffi.FALLOC_FL_PUNCH_HOLE | ffi.FALLOC_FL_KEEP_SIZE,
        offset,
        bytes,
      );
  if (result === 0) {
    state.stats.discardOk++;
    state.stats.discardBytesOk += bytes;
    return;
  }
  state.stats.discardFailed++;
  throw ioError(isUnsupported(-result) ? E.ENOTSUP : -result);
}

// ---- status --------------------------------------------------------------------------------------------------

async function blockStatus(
  node: FileNode,
  _guard: unknown,
  wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const extent = (flags: number, end: number): BlockStatus => ({
    bytes: Math.min(end - offset, bytes),
    flags: flags | Status.offsetValid,
    map: offset,
    file: node,
  });
  const everything = offset + bytes;
  const { fd, isDevice } = node.state;
  if (!wantZero || isDevice) return extent(Status.data, everything);
  const data = ffi.lseek(fd, offset, ffi.SEEK_DATA);
  if (data === -E.ENXIO) return extent(Status.zero, everything);
  if (data < 0) return extent(Status.data, everything);
  if (data > offset) return extent(Status.zero, data);
  const hole = ffi.lseek(fd, offset, ffi.SEEK_HOLE);
  // No progress: the file changed in between, or the file system guesses. Data is the safe answer.
  return extent(Status.data, hole > offset ? hole : everything);
}

// ---- the drivers ---------------------------------------------------------------------------------------------

function fileDriver(
  name: 'file' | 'host_cdrom' | 'host_device',
  accepts: (stat: Stats) => boolean,
  requirement: string,
): BlockDriver<FileState> {
  return {
    name,
    kind: 'protocol',
    growsWithZeroes: name === 'file',
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    strongOptions: ['filename'],
    creation: name === 'file' ? fileCreation : existingCreation(name),
    open: makeOpen(name, accepts, requirement),
    close,
    mutableOptions: {
      'drop-cache': 'refused',
      'x-check-cache-dropped': 'resets',
      // The original compares this one in two forms.
      'aio-max-batch': 'never-same',
    },
    reopenPrepare,
    reopenAbort,
    checkPermissions,
    setPermissions,
    abortPermissions,
    refreshLimits(node, limits: BlockLimits) {
      limits.requestAlignment = node.state.alignment;
      limits.minMemAlignment = node.state.direct ? node.state.alignment : 1;
    },
    exactFilename: (node) => node.state.filename,
    specificInfo({ state: { fd } }) {
      const hint = ffi.extentSizeHint(fd);
      return { type: 'file', data: { ...(hint > 0 && { 'extent-size-hint': hint }) } };
    },
    statistics: ({ state: { stats } }) => ({
      // Statistics know two kinds.
      driver: name === 'file' ? name : 'host_device',
      'discard-nb-ok': stats.discardOk,
      'discard-nb-failed': stats.discardFailed,
      'discard-bytes-ok': stats.discardBytesOk,
    }),
    // O_DIRECT keeps the page cache out, which a copy by the kernel goes through.
    copyRangeVia: ({ state }) => (state.direct || name !== 'file' ? null : state),
    copyRangeFrom,
    copyRangeTo,
    beginWriteback,
    tryPreadv,
    lendPages,
    tryPwritev,
    preadv,
    pwritev,
    pwriteZeroes,
    pdiscard,
    flush,
    blockStatus,
    getLength,
    getAllocatedFileSize: async (node) => fstatSync(node.state.fd).blocks * 512,
    getInfo: async () => ({ clusterSizeBytes: 0, isDirty: false }),
    truncate,
    truncateNow,
  };
}

export const file = fileDriver('file', (stat) => stat.isFile(), 'a regular file');
/** The drive answers for the medium that is in it now. */
const CDSL_CURRENT = 0x7fffffff;
const CDS_DISC_OK = 4;

/**
 * A drive with a medium that comes out. Devices and files that know nothing of media are taken as they are, with one
 * that stays; the original takes drives only.
 */
export const hostCdrom: BlockDriver<FileState> = {
  ...fileDriver('host_cdrom', () => true, 'a file or device'),
  growsWithZeroes: false,
  async isInserted({ state: { fd } }) {
    const status = ffi.ioctlNumber(fd, ffi.CDROM_DRIVE_STATUS, CDSL_CURRENT);
    return status < 0 || status === CDS_DISC_OK;
  },
  async eject({ state: { fd } }, _guard, ejected) {
    const result = ffi.ioctlNumber(fd, ejected ? ffi.CDROMEJECT : ffi.CDROMCLOSETRAY, 0);
    if (result < 0) throw ioError(-result);
  },
  async lockMedium({ state: { fd } }, _guard, locked) {
    const result = ffi.ioctlNumber(fd, ffi.CDROM_LOCKDOOR, locked ? 1 : 0);
    if (result < 0) throw ioError(-result);
  },
};

export const hostDevice = fileDriver(
  'host_device',
  (stat) => stat.isBlockDevice() || stat.isCharacterDevice(),
  'either a character or block device',
);
