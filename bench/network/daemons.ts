/** The daemons that bench:network compares, started with one node that is elsewhere. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { qblockd, SERVER_CPU } from '../fio.ts';
import { type Argv, type Background, pinned, sleep, startUntil } from '../measure.ts';
import type { Way } from './servers.ts';

export const DAEMONS = [
  { name: 'qblockd', program: qblockd },
  { name: 'original', program: 'qemu-storage-daemon' },
] as const;

/** A node by the options of blockdev-add. */
export interface RemoteNode {
  readonly name: string;
  readonly way: Way;
  readonly writable: boolean;
  options(port: number): Record<string, unknown>;
}

export interface RunningDaemon extends Background {
  readonly nbd: string;
  readonly qmp: string;
}

/** Starts a daemon with the node `n`, which its NBD server exports under the empty name. */
export async function startDaemon(
  { name, program }: (typeof DAEMONS)[number],
  folder: string,
  { options, writable }: RemoteNode,
  port: number,
  env: NodeJS.ProcessEnv,
): Promise<RunningDaemon> {
  const nbd = path.join(folder, `nbd-${name}`);
  const qmp = path.join(folder, `qmp-${name}`);
  for (const socket of [nbd, qmp]) rmSync(socket, { force: true });
  const node = JSON.stringify({ 'node-name': 'n', 'read-only': !writable, ...options(port) });
  const argv: Argv = [
    ...([program, '--chardev', `socket,id=qmp,path=${qmp},server=on,wait=off`] as const),
    ...['--monitor', 'chardev=qmp', '--blockdev', node, '--nbd-server', `addr.type=unix,addr.path=${nbd}`],
    ...['--export', `nbd,id=e,node-name=n,name=,writable=${writable ? 'on' : 'off'}`],
  ];
  process.env.SSH_AUTH_SOCK = env.SSH_AUTH_SOCK;
  const started = await startUntil(pinned(SERVER_CPU, argv), nbd);
  await sleep(500);
  return { ...started, nbd, qmp };
}
