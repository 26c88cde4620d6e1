/**
 * Block jobs for measurements: the images a job of each kind works on, and a daemon that has them open. Who measures
 * what is elsewhere.
 */

import { execFileSync } from 'node:child_process';
import { readdirSync, rmSync, statSync } from 'node:fs';
import { cpus } from 'node:os';
import path from 'node:path';
import { fileSystemOf, qblockd, SERVER_CPU, syncFile } from './fio.ts';
import { pinned, sleep, startUntil } from './measure.ts';
import { BenchQmp } from './qmp.ts';

export type Format = 'raw' | 'qcow2';

export interface JobServer {
  readonly name: string;
  readonly program: string;
  readonly aio: string;
}

export const JOB_SERVERS: readonly JobServer[] = [
  { name: 'qblockd', program: qblockd, aio: '' },
  { name: 'qemu-storage-daemon io_uring', program: 'qemu-storage-daemon', aio: 'io_uring' },
];

export interface JobLoad {
  readonly name: string;
  /** Images that hold data, and empty ones, in the order they are opened: base before overlay. */
  readonly images: readonly {
    readonly name: string;
    readonly format: Format;
    readonly data: boolean;
    readonly backing?: string;
  }[];
  readonly command: string;
  readonly arguments: object;
  /** The node a guest has. */
  readonly guestNode: string;
  /** The image that only the job writes to; null when the guest's writes go there too. */
  readonly ownImage: string | null;
}

export function copyLoad(kind: 'mirror' | 'backup', from: Format, to: Format): JobLoad {
  return {
    name: kind,
    images: [
      { name: 'source', format: from, data: true },
      { name: 'target', format: to, data: false },
    ],
    command: `blockdev-${kind}`,
    arguments: { 'job-id': 'job', device: 'source', target: 'target', sync: 'full' },
    guestNode: 'source',
    ownImage: kind === 'mirror' ? 'target' : null,
  };
}

const chain = (dataIn: 'base' | 'mid'): JobLoad['images'] => [
  { name: 'base', format: 'raw', data: dataIn === 'base' },
  { name: 'mid', format: 'qcow2', data: dataIn === 'mid', backing: 'base' },
  { name: 'top', format: 'qcow2', data: false, backing: 'mid' },
];

export const STREAM_LOAD: JobLoad = {
  name: 'stream',
  images: chain('base').slice(0, 2),
  command: 'block-stream',
  arguments: { 'job-id': 'job', device: 'mid' },
  guestNode: 'mid',
  ownImage: null,
};

export const COMMIT_LOAD: JobLoad = {
  name: 'commit',
  images: chain('mid'),
  command: 'block-commit',
  arguments: { 'job-id': 'job', device: 'top', 'top-node': 'mid', 'base-node': 'base' },
  guestNode: 'top',
  ownImage: 'base',
};

/** Makes the images of a load in `folder`; the data come from `master`, a raw file. */
export function makeImages(load: JobLoad, folder: string, master: string, sizeMib: number): void {
  for (const { name, format, data, backing } of load.images) {
    const file = path.join(folder, name);
    if (data && backing === undefined) {
      execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', format, master, file]);
    } else {
      const below = load.images.find((image) => image.name === backing);
      const args = below === undefined ? [] : ['-b', path.join(folder, below.name), '-F', below.format];
      execFileSync('qemu-img', ['create', '-q', '-f', format, ...args, file, `${sizeMib}M`]);
      if (data) execFileSync('qemu-img', ['convert', '-n', '-f', 'raw', '-O', format, master, file]);
    }
    syncFile(file);
  }
}

/** Removes what is in the folder; files are synced before, so that nobody pays for the pages of the one before. */
export function cleanFolder(folder: string): void {
  for (const name of readdirSync(folder)) {
    const file = path.join(folder, name);
    if (statSync(file).isFile()) syncFile(file);
    rmSync(file, { force: true });
  }
}

/** The line below a table: when and where, on how much data of a job, in how many rounds. */
export function jobsFooter(sizeMib: number, folder: string, rounds: string): string {
  return (
    `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${cpus().length} CPUs; ` +
    `${sizeMib} MiB of data on ${fileSystemOf(folder)} in the page cache; ${rounds} rounds, interleaved.\n`
  );
}

export interface RunningJobServer {
  readonly qmp: BenchQmp;
  /** UNIX socket of the NBD server. */
  readonly nbdSocket: string;
  readonly pid: number;
  stop(): Promise<void>;
}

/** Starts a daemon with the images of a load as nodes of their names. */
export async function startJobServer(
  server: JobServer,
  load: JobLoad,
  folder: string,
  isPinned: boolean,
): Promise<RunningJobServer> {
  const socket = path.join(folder, 'qmp');
  const nbdSocket = path.join(folder, 'nbd');
  const argv = [
    server.program,
    ...['--chardev', `socket,id=qmp,path=${socket},server=on,wait=off`, '--monitor', 'chardev=qmp'],
    ...['--nbd-server', `addr.type=unix,addr.path=${nbdSocket}`],
  ] as const;
  const { child, stop } = await startUntil(isPinned ? pinned(SERVER_CPU, argv) : argv, socket);
  await sleep(300);
  const qmp = await BenchQmp.connect(socket);
  await openImages(qmp, server, load, folder);
  return {
    qmp,
    nbdSocket,
    pid: child.pid!,
    stop: async () => {
      qmp.close();
      await stop();
    },
  };
}

/** Opens the images of a load as nodes of their names. */
export async function openImages(
  qmp: BenchQmp,
  { aio }: JobServer,
  load: JobLoad,
  folder: string,
): Promise<void> {
  for (const { name, format, backing } of load.images) {
    await qmp.execute('blockdev-add', {
      driver: format,
      'node-name': name,
      file: { driver: 'file', filename: path.join(folder, name), ...(aio !== '' && { aio }) },
      ...(format === 'qcow2' && { backing: backing ?? null }),
    });
  }
}

/** Closes what openImages has opened; no job is left. */
export async function closeImages(qmp: BenchQmp, load: JobLoad): Promise<void> {
  for (const { name } of load.images.toReversed()) await qmp.execute('blockdev-del', { 'node-name': name });
}
