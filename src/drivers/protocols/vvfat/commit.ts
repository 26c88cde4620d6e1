/**
 * Bringing the folder up to date with the disk. Nothing is written to a file of the folder in place: new content is
 * made complete in a folder of its own beside, on stable storage, then moved to its name; only then goes what the guest
 * has removed. So whatever fails or crashes in between, every file is the old one or the new one.
 *
 * Files that the host has put into the folder meanwhile are not touched, unless the guest uses their names.
 */

import { link, lstat, mkdir, mkdtemp, open, rename, rm, rmdir, unlink } from 'node:fs/promises';
import path from 'node:path';
import { type BaseDisk, pinFile } from './base.ts';
import { SECTOR_BYTES } from './layout.ts';
import { hasBit, type Overlay } from './overlay.ts';
import { clusterOffset, Inconsistent, type ReadDisk, type Tree, type TreeFile } from './tree.ts';

export const STAGING_PREFIX = '.qblock-vvfat-';
const PIECE_BYTES = 256 * 1024;

interface Commit {
  readonly base: BaseDisk;
  readonly overlay: Overlay;
  readonly read: ReadDisk;
  readonly before: Tree;
  readonly after: Tree;
}

/** Whether a file's clusters have been written to since the last time. */
function isTouched({ base, overlay }: Commit, { chain }: TreeFile): boolean {
  const { layout } = base;
  return chain.some((cluster) => {
    const first = clusterOffset(layout, cluster) / SECTOR_BYTES;
    for (let i = 0; i < layout.clusterSectors; i++) if (hasBit(overlay.fresh, first + i)) return true;
    return false;
  });
}

function isSame(one: TreeFile, other: TreeFile): boolean {
  return (
    one.isFolder === other.isFolder &&
    one.bytes === other.bytes &&
    one.chain.length === other.chain.length &&
    one.chain.every((cluster, i) => cluster === other.chain[i])
  );
}

/** Where the content of a new or changed file comes from: another name it had, or the disk. */
type Change = { readonly to: string; readonly file: TreeFile; readonly from: string | null };

function changesOf(commit: Commit): Change[] {
  const { before, after } = commit;
  const gone = new Map<number, string>();
  for (const [name, file] of before) {
    if (!file.isFolder && file.chain.length > 0 && !after.has(name)) gone.set(file.chain[0]!, name);
  }
  const changes: Change[] = [];
  for (const [name, file] of after) {
    if (file.isFolder) continue;
    const old = before.get(name);
    if (old !== undefined && isSame(old, file) && !isTouched(commit, file)) continue;
    const from = file.chain.length === 0 ? null : (gone.get(file.chain[0]!) ?? null);
    const moved = from !== null && isSame(before.get(from)!, file) && !isTouched(commit, file);
    changes.push({ to: name, file, from: moved ? from : null });
  }
  return changes;
}

/** A path inside the folder, none of whose folders is a link to somewhere else. */
async function hostPath(dir: string, name: string): Promise<string> {
  const parts = name.split('/');
  let at = dir;
  for (const part of parts.slice(0, -1)) {
    at = path.join(at, part);
    const stat = await lstat(at).catch(() => null);
    if (stat !== null && !stat.isDirectory()) throw new Inconsistent(`'${at}' is no folder`);
  }
  return path.join(at, parts.at(-1)!);
}

async function stage(commit: Commit, change: Change, target: string): Promise<void> {
  const { base, read } = commit;
  const { file, from } = change;
  if (from !== null) {
    const linked = await link(await hostPath(base.dir, from), target).then(
      () => true,
      () => false,
    );
    if (linked) return;
  }
  const old = await lstat(await hostPath(base.dir, change.to)).catch(() => null);
  const handle = await open(target, 'wx', old?.isFile() === true ? old.mode & 0o777 : 0o644);
  try {
    let left = file.bytes;
    let at = 0;
    for (let i = 0; i < file.chain.length && left > 0; ) {
      // Neighbouring clusters in one piece.
      let end = i + 1;
      const most = Math.max(1, Math.floor(PIECE_BYTES / base.layout.clusterBytes));
      while (end < file.chain.length && end - i < most && file.chain[end] === file.chain[end - 1]! + 1) end++;
      const data = await read(
        clusterOffset(base.layout, file.chain[i]!),
        (end - i) * base.layout.clusterBytes,
      );
      const bytes = Math.min(left, data.length);
      for (let done = 0; done < bytes; )
        done += (await handle.write(data, done, bytes - done, at + done)).bytesWritten;
      at += bytes;
      left -= bytes;
      i = end;
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Makes the folder what `after` says. Throws what the host says; the folder is whole then, too. */
export async function commitTree(commit: Commit): Promise<void> {
  const { base, before, after } = commit;
  const changes = changesOf(commit);
  const removed = [...before].filter(([name, file]) => after.get(name)?.isFolder !== file.isFolder);
  const folders = [...after].filter(([name, file]) => file.isFolder && before.get(name)?.isFolder !== true);
  if (changes.length + removed.length + folders.length === 0) return;
  // What the disk shows of old files stays readable.
  for (const { to } of changes) await pinFile(base, to);
  for (const [name] of removed) await pinFile(base, name);
  const staging = await mkdtemp(path.join(base.dir, STAGING_PREFIX));
  try {
    const staged: { readonly at: string; readonly to: string }[] = [];
    for (const [i, change] of changes.entries()) {
      const at = path.join(staging, String(i));
      await stage(commit, change, at);
      staged.push({ at, to: change.to });
    }
    await syncFolder(staging);
    // A name that was a file and is a folder now is free first; its content is gone in the guest, too.
    for (const [name, file] of removed)
      if (!file.isFolder && after.get(name)?.isFolder === true) await unlink(await hostPath(base.dir, name));
    for (const [name] of folders)
      await mkdir(await hostPath(base.dir, name)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error;
      });
    const late: typeof staged = [];
    for (const each of staged) {
      if (before.get(each.to)?.isFolder === true) late.push(each);
      else await rename(each.at, await hostPath(base.dir, each.to));
    }
    for (const [name, file] of removed)
      if (!file.isFolder && !after.has(name)) await removeIfThere(unlink, await hostPath(base.dir, name));
    // The deepest first; what the host has put into one keeps it there.
    for (const [name, file] of removed.reverse())
      if (file.isFolder) await removeIfThere(rmdir, await hostPath(base.dir, name));
    for (const each of late) await rename(each.at, await hostPath(base.dir, each.to));
    await syncFolder(base.dir);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

async function removeIfThere(remove: (name: string) => Promise<void>, name: string): Promise<void> {
  try {
    await remove(name);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOENT' && code !== 'ENOTEMPTY') throw error;
  }
}
