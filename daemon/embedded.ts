/**
 * `--embedded DIR`: what a newcomer gets without any option. A disk in DIR, exported over NBD, QMP on a UNIX socket
 * and on a WebSocket, and what to try next.
 */

import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { F_WRLCK, setOfdLock } from '../src/aio/ffi.ts';
import { E } from '../src/errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../src/errors/error.ts';
import type { Daemon } from './daemon.ts';
import { startQmpListener } from './qmp-listener.ts';
import { writeAll } from './reporter.ts';

const DISK_BYTES = 1024 ** 3;

function makeFolder(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true });
  } catch (error) {
    throw errnoError(`Could not create '${dir}'`, errnoOf(error));
  }
}

/** Makes the disk where it is missing. It takes no space until it is written. */
function ensureDisk(dir: string): string {
  const disk = path.join(dir, 'disk.raw');
  try {
    if (!existsSync(disk)) {
      const fd = openSync(disk, 'wx', 0o600);
      ftruncateSync(fd, DISK_BYTES);
      closeSync(fd);
    }
  } catch (error) {
    throw errnoError(`Could not create '${disk}'`, errnoOf(error));
  }
  return disk;
}

/**
 * Keeps the folder for this process until it ends. Throws when another one has it, and says which. The file stays: whoever
 * removed it could remove one that somebody has just locked.
 */
function lockFolder(dir: string): void {
  const file = path.join(dir, 'lock');
  let fd: number;
  try {
    fd = openSync(file, constants.O_CREAT | constants.O_RDWR, 0o600);
  } catch (error) {
    throw errnoError(`Could not open '${file}'`, errnoOf(error));
  }
  const result = setOfdLock(fd, F_WRLCK, 0, 0);
  if (result === -E.EAGAIN || result === -E.EACCES) {
    const owner = readFileSync(fd, 'utf8').trim();
    closeSync(fd);
    throw new BlockError(
      `'${shortPath(dir)}' is being served by another process${owner === '' ? '' : ` (pid ${owner})`}`,
    );
  }
  // A file system without locks keeps nobody out.
  ftruncateSync(fd, 0);
  writeSync(fd, `${process.pid}\n`);
}

/** As written, or relative to the folder the user is in where that is shorter. */
function shortPath(file: string): string {
  const relative = path.relative(process.cwd(), file);
  return relative.length < file.length && !relative.startsWith('..') ? relative : file;
}

function nextSteps(nbdSocket: string, qmpSocket: string): string {
  const uri = `nbd+unix:///disk0?socket=${nbdSocket}`;
  const script = '{"execute":"qmp_capabilities"}{"execute":"query-named-block-nodes"}';
  return `
Try next:
  nbdinfo '${uri}'
  echo '${script}' | socat -t1 - UNIX-CONNECT:${qmpSocket}
  nbdcopy --progress '${uri}' copy.raw
`;
}

/** Sets everything up. The daemon serves when its command line has been executed. */
export async function startEmbedded(dirName: string, daemon: Daemon): Promise<void> {
  const dir = path.resolve(dirName);
  makeFolder(dir);
  lockFolder(dir);
  const disk = ensureDisk(dir);
  const nbdSocket = path.join(dir, 'nbd.sock');
  const qmpSocket = path.join(dir, 'qmp.sock');
  await daemon.run('blockdev-add', {
    driver: 'file',
    'node-name': 'file0',
    filename: disk,
    discard: 'unmap',
  });
  await daemon.run('blockdev-add', { driver: 'raw', 'node-name': 'disk0', file: 'file0', discard: 'unmap' });
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path: nbdSocket } } });
  await daemon.run('block-export-add', { type: 'nbd', id: 'disk0', 'node-name': 'disk0', writable: true });
  const settings = { pretty: false, token: null, tokenFile: null, remote: false };
  const qmp = await startQmpListener(
    { ...settings, address: { kind: 'unix', path: qmpSocket } },
    daemon.host,
  );
  const tokenFile = path.join(dir, 'qmp.token');
  const webSocket = await startQmpListener(
    { ...settings, tokenFile, address: { kind: 'ws', host: '127.0.0.1', port: '0' } },
    daemon.host,
  );
  daemon.listeners.push(qmp, webSocket);
  writeAll(
    1,
    `Disk       ${shortPath(disk)}
NBD        ${shortPath(nbdSocket)} (export disk0)
QMP        ${shortPath(qmpSocket)}
WebSocket  ${webSocket.url}
Console    ${webSocket.url.replace(/^ws:/, 'http:')}
${nextSteps(shortPath(nbdSocket), shortPath(qmpSocket))}`,
  );
}
