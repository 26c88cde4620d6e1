/**
 * Making files for the file driver: options of QMP (BlockdevCreateOptionsFile) and of the tools.
 *
 * A file that exists is emptied and used, whatever it is; one whose size another process relies on is left alone:
 * creation takes the image locks (file/locks.ts) for writing and resizing, and unshares resizing. Resizing itself is
 * file-resize.ts.
 */

import { closeSync, constants, unlinkSync } from 'node:fs';
import * as ffi from '../../../aio/ffi.ts';
import { openHostFile } from '../../../aio/host/files.ts';
import { hostPath } from '../../../aio/host/names.ts';
import {
  type CreateOption,
  type CreateOptionValues,
  type CreateProgress,
  type DriverOptions,
  type ImageCreation,
  type PreallocMode,
  sizeOption,
} from '../../../block/contract/image.ts';
import { Perm } from '../../../block/contract/request.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../errors/error.ts';
import type { FileState } from './io.ts';
import { FileLocks, probeOfdLocks } from './locks.ts';
import { resizeFile } from './resize.ts';

export interface CreateFileOptions {
  readonly filename: string;
  /** Bytes; not rounded. */
  readonly size: number;
  readonly preallocation?: PreallocMode;
  /** Turns copy-on-write off where the file system has it; a file system without is no error. */
  readonly nocow?: boolean;
  /** Bytes; 0: left to the file system. Default 1 MiB. */
  readonly 'extent-size-hint'?: number;
}

const DEFAULT_EXTENT_SIZE_HINT_BYTES = 1024 * 1024;

/** Makes (or empties) a file. Throws the original's errors; what was made stays then. */
export async function createHostFile(
  layer: BlockLayer,
  options: CreateFileOptions,
  progress: CreateProgress,
): Promise<void> {
  const { filename, size, preallocation = 'off', nocow = false } = options;
  const hint = options['extent-size-hint'] ?? DEFAULT_EXTENT_SIZE_HINT_BYTES;
  if (hint > 0xffffffff) throw new BlockError('Extent size hint is too large', { errno: E.EINVAL });
  const fd = openForCreation(filename);
  try {
    lockForCreation(fd, filename, layer);
    await progress.checked?.();
    const state = creationState(layer, fd, filename);
    await resizeFile(state, 0, 'off');
    // Both are advice: what the file system makes of them does not matter for the content.
    if (nocow) ffi.setNoCow(fd);
    if (hint !== 0) ffi.setExtentSizeHint(fd, hint);
    await resizeFile(state, size, preallocation);
  } finally {
    closeSync(fd);
  }
}

function openForCreation(filename: string): number {
  try {
    const fd = openHostFile(filename, constants.O_RDWR | constants.O_CREAT, 0o644);
    ffi.setBlocking(fd);
    return fd;
  } catch (error) {
    throw errnoError(`Could not create '${filename}'`, errnoOf(error));
  }
}

function lockForCreation(fd: number, filename: string, { mayWaitInCalls }: BlockLayer): void {
  if (probeOfdLocks(fd) !== 0) return;
  new FileLocks(fd, filename, mayWaitInCalls).acquire({
    perm: Perm.write | Perm.resize,
    shared: Perm.all & ~Perm.resize,
  });
}

/** Enough of an open node's state for resizing. */
function creationState(layer: BlockLayer, fd: number, filename: string): FileState {
  return {
    fd,
    filename,
    engine: layer.engine,
    isDevice: false,
    direct: false,
    locks: null,
    writable: true,
    next: null,
    mayInline: false,
    inlineWrites: false,
    slowWriteMs: layer.slowWriteMs,
    inlineReads: false,
    residency: null,
    skipInlineReads: 0,
    canPunchHole: true,
    canZeroRange: true,
    avoidInlineUntilMs: 0,
    alignment: 1,
    stats: { discardOk: 0, discardFailed: 0, discardBytesOk: 0 },
    lastSource: null,
    writeback: { bytes: 0, running: null },
  };
}

// ---- the tools' way ------------------------------------------------------------------------------------------

const PREALLOC_MODES: readonly string[] = ['off', 'metadata', 'falloc', 'full'] satisfies PreallocMode[];

/** Options for new files; `size` comes first as everywhere. */
export const FILE_CREATE_OPTIONS: readonly CreateOption[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'nocow', type: 'bool', help: 'Turn off copy-on-write (valid only on btrfs)' },
  {
    name: 'preallocation',
    type: 'string',
    help: 'Preallocation mode (allowed values: off, falloc, full)',
  },
  { name: 'extent_size_hint', type: 'size', help: 'Extent size hint for the image file, 0 to disable' },
];

/** The path in a tool's file name, which may have the prefix of the driver. */
function pathOf(filename: string): string {
  return filename.startsWith('file:') ? filename.slice('file:'.length) : filename;
}

/** Makes a file from the tools' values; options of others are left alone. */
export function createFileFromValues(
  layer: BlockLayer,
  filename: string,
  values: CreateOptionValues,
  progress: CreateProgress,
): Promise<void> {
  const preallocation = values.preallocation ?? 'off';
  if (!PREALLOC_MODES.includes(preallocation)) {
    return Promise.reject(new BlockError(`invalid parameter value: ${preallocation}`, { errno: E.EINVAL }));
  }
  // Sizes of raw images end at a sector in the tools.
  const size = sizeOption(values);
  const options: CreateFileOptions = {
    filename: pathOf(filename),
    size,
    preallocation: preallocation as PreallocMode,
    nocow: values.nocow === 'on',
    ...(values.extent_size_hint !== undefined && { 'extent-size-hint': Number(values.extent_size_hint) }),
  };
  return createHostFile(layer, options, progress);
}

/** Removes a file that was to become an image and did not. */
export function removeHostFile(filename: string): void {
  try {
    unlinkSync(hostPath(pathOf(filename)));
  } catch {
    // What cannot be removed stays; the error that led here says more.
  }
}

export const fileCreation: ImageCreation = {
  create: (layer: BlockLayer, options: DriverOptions, progress: CreateProgress) =>
    createHostFile(layer, options as unknown as CreateFileOptions, progress),
  options: FILE_CREATE_OPTIONS,
  createFile: createFileFromValues,
};
