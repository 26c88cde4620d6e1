/** What the guest has written: sectors in a file of the host that has no name. */

import type { FileHandle } from 'node:fs/promises';
import { mkdtemp, open, rmdir, unlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { SECTOR_BYTES } from './layout.ts';

export interface Overlay {
  readonly file: FileHandle;
  /** A bit per sector: it is here; it has been written since the folder was last brought up to date. */
  readonly written: Uint8Array;
  readonly fresh: Uint8Array;
  /** Anything is fresh. */
  dirty: boolean;
}

export async function createOverlay(sectors: number): Promise<Overlay> {
  const folder = await mkdtemp(path.join(tmpdir(), 'qblock-vvfat-'));
  const name = path.join(folder, 'written');
  const file = await open(name, 'wx+', 0o600);
  await unlink(name);
  await rmdir(folder);
  const bytes = Math.ceil(sectors / 8);
  return { file, written: new Uint8Array(bytes), fresh: new Uint8Array(bytes), dirty: false };
}

export function hasBit(bits: Uint8Array, index: number): boolean {
  return (bits[index >> 3]! & (1 << (index & 7))) !== 0;
}

/** Whole sectors. */
export async function writeOverlay(overlay: Overlay, offset: number, data: Buffer): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const { bytesWritten } = await overlay.file.write(data, done, data.length - done, offset + done);
    done += bytesWritten;
  }
  const first = offset / SECTOR_BYTES;
  for (let sector = first; sector < first + data.length / SECTOR_BYTES; sector++) {
    const mask = 1 << (sector & 7);
    overlay.written[sector >> 3]! |= mask;
    overlay.fresh[sector >> 3]! |= mask;
  }
  overlay.dirty = true;
}

/** Reads whole sectors: those that have been written from here, runs of others by `readBelow`. */
export async function readOverlay(
  overlay: Overlay,
  offset: number,
  target: Buffer,
  readBelow: (offset: number, target: Buffer) => Promise<void>,
): Promise<void> {
  const first = offset / SECTOR_BYTES;
  const count = target.length / SECTOR_BYTES;
  for (let i = 0; i < count; ) {
    const here = hasBit(overlay.written, first + i);
    let end = i + 1;
    while (end < count && hasBit(overlay.written, first + end) === here) end++;
    const part = target.subarray(i * SECTOR_BYTES, end * SECTOR_BYTES);
    const at = offset + i * SECTOR_BYTES;
    if (!here) await readBelow(at, part);
    else {
      for (let done = 0; done < part.length; ) {
        const { bytesRead } = await overlay.file.read(part, done, part.length - done, at + done);
        if (bytesRead === 0) throw new Error('the file of written sectors is too short');
        done += bytesRead;
      }
    }
    i = end;
  }
}
