/**
 * `npm run bench:network`: images from elsewhere, side by side with the original. nginx, sshd, tgtd, nfs-ganesha and Ceph on
 * loopback (as root, with no port mapper running), reached directly and, but for Ceph, through a proxy that answers 5 ms
 * later. Two parts: `convert` of an image from there and to there, from and into files that exist; and fio over NBD on a
 * daemon whose node it is. Tools and daemons share CPU 0, servers, proxy and fio are on CPU 1; the order rotates.
 *
 * As in nbd.ts only figures from one run may be compared.
 *
 * Options: --size MIB (256), --rounds N (3), --load START of a load's name, --runtime SECONDS of fio (3),
 * --parts convert,fio.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type Figures, load, NoAnswerError, qblockd, runFio, SERVER_CPU } from './fio.ts';
import {
  type Argv,
  type Background,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  sleep,
  startUntil,
} from './measure.ts';
import {
  ceph,
  DELAY_MS,
  ganesha,
  ISCSI_TARGET,
  nginx,
  type Running,
  registerNfs,
  sshd,
  tgtd,
  type Way,
  withDelay,
} from './network-servers.ts';

const MIB = 1024 * 1024;
const qblockImg = path.resolve(import.meta.dirname, '../../daemon/bin/qblock-img');
const TOOLS = [
  { name: 'qblock-img', program: qblockImg },
  { name: 'qemu-img', program: 'qemu-img' },
] as const;
const DAEMONS = [
  { name: 'qblockd', program: qblockd },
  { name: 'original', program: 'qemu-storage-daemon' },
] as const;

interface Load {
  readonly name: string;
  /** Arguments behind `convert`, for a server on this port. */
  arguments(port: number): readonly string[];
  readonly way: Way;
}

/** Runs a tool on its CPU and tells wall and CPU seconds. */
function measure(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): { wall: number; cpu: number } {
  const began = performance.now();
  const argv = pinned(SERVER_CPU, [program, 'convert', ...args]);
  const { status, stdout, stderr } = spawnSync('bash', ['-c', '"$@" || exit 1; times', 'sh', ...argv], {
    encoding: 'utf8',
    env,
  });
  const wall = (performance.now() - began) / 1000;
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
  // The second line is the children's: user and system time as MmS.s.
  const times = [...(stdout.trim().split('\n').at(-1) ?? '').matchAll(/(\d+)m([\d.]+)s/g)];
  return {
    wall,
    cpu: times.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0),
  };
}

async function startAgent(folder: string, running: Running[]): Promise<NodeJS.ProcessEnv> {
  const socket = path.join(folder, 'agent');
  running.push(await startUntil(['ssh-agent', '-D', '-a', socket], socket));
  const env = { ...process.env, SSH_AUTH_SOCK: socket };
  execFileSync('ssh-add', ['-q', path.join(folder, 'user')], { env });
  return env;
}

/** Nodes by the options of blockdev-add, for the daemons. */
interface Served {
  readonly name: string;
  readonly way: Way;
  readonly writable: boolean;
  options(port: number): Record<string, unknown>;
}

/** Of a daemon that stopped to answer. */
const NOTHING: Figures = {
  ...{ requestsPerSecond: 0, userUs: Number.NaN, kernelUs: Number.NaN },
  ...{ clientShare: 0, p99Us: Number.NaN },
};

const FIO_LOADS = [
  { load: load('read', '256k', 1), writes: false },
  { load: load('randread', '4k', 16), writes: false },
  { load: load('randread', '64k', 16), writes: false },
  { load: load('randwrite', '4k', 16), writes: true },
] as const;

async function serve(
  program: string,
  folder: string,
  { options, writable }: Served,
  port: number,
  env: NodeJS.ProcessEnv,
): Promise<Background & { readonly socket: string }> {
  const socket = path.join(folder, 'nbd');
  rmSync(socket, { force: true });
  const node = JSON.stringify({ 'node-name': 'n', 'read-only': !writable, ...options(port) });
  const argv: Argv = [
    ...([program, '--blockdev', node, '--nbd-server', `addr.type=unix,addr.path=${socket}`] as const),
    ...['--export', `nbd,id=e,node-name=n,name=,writable=${writable ? 'on' : 'off'}`],
  ];
  process.env.SSH_AUTH_SOCK = env.SSH_AUTH_SOCK;
  const started = await startUntil(pinned(SERVER_CPU, argv), socket);
  await sleep(500);
  return { ...started, socket };
}

async function fioRows(
  folder: string,
  served: readonly Served[],
  env: NodeJS.ProcessEnv,
  { rounds, size, runtime }: { readonly rounds: number; readonly size: number; readonly runtime: number },
): Promise<string[][]> {
  const rows: string[][] = [];
  for (const one of served)
    for (const [delay, port] of ways(one.way)) {
      await one.way.use?.(port);
      for (const { load: what, writes } of FIO_LOADS) {
        if (writes && !one.writable) continue;
        const found = new Map<string, Figures[]>(DAEMONS.map(({ name }) => [name, []]));
        for (let round = 0; round < rounds; round++)
          for (let i = 0; i < DAEMONS.length; i++) {
            const { name, program } = DAEMONS[(i + round) % DAEMONS.length]!;
            const server = await serve(program, folder, one, port, env);
            try {
              found.get(name)!.push(runFio(server.socket, server.child.pid!, what, runtime, size));
            } catch (error) {
              if (!(error instanceof NoAnswerError)) throw error;
              process.stderr.write(`${one.name}, ${what.name}: ${name} answers no more\n`);
              found.get(name)!.push(NOTHING);
            } finally {
              await server.stop();
            }
          }
        const middle = (name: string, of: (figures: Figures) => number): number =>
          median(found.get(name)!.map(of));
        const speed = (name: string): number => middle(name, ({ requestsPerSecond }) => requestsPerSecond);
        const cpu = (name: string): string =>
          middle(name, ({ userUs, kernelUs }) => userUs + kernelUs).toFixed(0);
        rows.push([
          `${one.name}, ${what.name}, ${delay}`,
          speed('qblockd').toFixed(0),
          speed('original').toFixed(0),
          `${(speed('qblockd') / speed('original')).toFixed(2)}x`,
          cpu('qblockd'),
          cpu('original'),
        ]);
        process.stderr.write(`${rows.at(-1)!.join('  ')}\n`);
      }
    }
  return rows;
}

function ways(way: Way): readonly (readonly [string, number])[] {
  const direct = ['0 ms', way.direct] as const;
  return way.delayed === 0 ? [direct] : [direct, [`${DELAY_MS} ms`, way.delayed]];
}

async function convertRows(
  loads: readonly Load[],
  rounds: number,
  sizeMib: number,
  env: NodeJS.ProcessEnv,
): Promise<string[][]> {
  const rows: string[][] = [];
  for (const one of loads)
    for (const [delay, port] of ways(one.way)) {
      await one.way.use?.(port);
      const results = new Map<string, { wall: number; cpu: number }[]>(TOOLS.map(({ name }) => [name, []]));
      for (let round = 0; round < rounds; round++)
        for (let i = 0; i < TOOLS.length; i++) {
          const { name, program } = TOOLS[(i + round) % TOOLS.length]!;
          results.get(name)!.push(measure(program, one.arguments(port), env));
        }
      const middle = (name: string, key: 'wall' | 'cpu'): number =>
        median(results.get(name)!.map((result) => result[key]));
      const speed = (name: string): number => sizeMib / middle(name, 'wall');
      rows.push([
        `${one.name}, ${delay}`,
        speed('qblock-img').toFixed(0),
        speed('qemu-img').toFixed(0),
        `${(speed('qblock-img') / speed('qemu-img')).toFixed(2)}x`,
        ((middle('qblock-img', 'cpu') * 1024) / sizeMib).toFixed(2),
        ((middle('qemu-img', 'cpu') * 1024) / sizeMib).toFixed(2),
      ]);
      process.stderr.write(`${rows.at(-1)!.join('  ')}\n`);
    }
  return rows;
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    size: '256',
    rounds: '3',
    load: '',
    runtime: '3',
    parts: 'convert,fio',
  });
  for (const tool of [
    'qemu-img',
    'taskset',
    'nginx',
    'ssh-agent',
    'openssl',
    'tgtd',
    'ganesha.nfsd',
    'ceph-mon',
  ])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const rounds = Number(options.rounds);
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-bench-'));
  const running: Running[] = [];
  const isWanted = ({ name }: { readonly name: string }): boolean => name.startsWith(options.load);
  const wants = (...names: readonly string[]): boolean => names.some((name) => isWanted({ name }));
  try {
    const disk = path.join(folder, 'disk');
    const out = path.join(folder, 'out');
    const random = execFileSync('head', ['-c', String(sizeMib * MIB), '/dev/urandom'], {
      maxBuffer: 2 ** 31,
    });
    writeFileSync(disk, random);
    for (const copy of ['out', 'remote', 'iscsi']) copyFileSync(disk, path.join(folder, copy));
    mkdirSync(path.join(folder, 'share'));
    copyFileSync(disk, path.join(folder, 'share/disk'));
    const subject = ['-subj', '/CN=localhost', '-days', '2', '-nodes', '-newkey', 'rsa:2048'];
    const keys = ['-keyout', `${folder}/key.pem`, '-out', `${folder}/cert.pem`];
    execFileSync('openssl', ['req', '-x509', ...subject, ...keys], { stdio: 'ignore' });
    const nowhere: Way = { direct: 0, delayed: 0 };
    const http = await withDelay(folder, running, nginx(folder, false));
    const https = await withDelay(folder, running, nginx(folder, true));
    const ssh = await withDelay(folder, running, sshd(folder));
    const iscsi = wants('iscsi')
      ? await withDelay(folder, running, tgtd(folder, `${folder}/iscsi`))
      : nowhere;
    const nfs = wants('nfs')
      ? { ...(await withDelay(folder, running, ganesha(folder, running))), use: registerNfs }
      : nowhere;
    const conf = wants('rbd') ? await ceph(folder, running, disk) : '';
    // The OSD tells its clients its own address: there is no proxy in between.
    const rbd: Way = nowhere;
    const env = await startAgent(folder, running);
    const into = ['-n', '-W', '-O', 'raw'];
    const sshName = (port: number, file: string): string =>
      `ssh://127.0.0.1:${port}${folder}/${file}?host_key_check=no`;
    const iscsiName = (port: number): string => `iscsi://127.0.0.1:${port}/${ISCSI_TARGET}/1`;
    const nfsName = `nfs://127.0.0.1${folder}/share/disk`;
    const rbdName = `rbd:rbd/disk:conf=${conf}`;
    const reading = (name: string, way: Way, from: (port: number) => string): Load => ({
      name,
      way,
      arguments: (port) => [...into, '-f', 'raw', from(port), out],
    });
    const writing = (name: string, way: Way, to: (port: number) => string): Load => ({
      name,
      way,
      arguments: (port) => [...into, '-f', 'raw', disk, to(port)],
    });
    const loads: readonly Load[] = [
      reading('http', http, (port) => `http://127.0.0.1:${port}/disk`),
      {
        name: 'https',
        way: https,
        arguments: (port) => [
          ...[...into, '--image-opts'],
          `driver=raw,file.driver=https,file.sslverify=off,file.url=https://127.0.0.1:${port}/disk`,
          out,
        ],
      },
      reading('ssh, read', ssh, (port) => sshName(port, 'disk')),
      writing('ssh, write', ssh, (port) => sshName(port, 'remote')),
      reading('iscsi, read', iscsi, iscsiName),
      writing('iscsi, write', iscsi, iscsiName),
      reading('nfs, read', nfs, () => nfsName),
      writing('nfs, write', nfs, () => nfsName),
      reading('rbd, read', rbd, () => rbdName),
      writing('rbd, write', rbd, () => rbdName),
    ];
    const inet = (port: number): object => ({ host: '127.0.0.1', port: String(port) });
    const served: readonly Served[] = [
      {
        name: 'http',
        way: http,
        writable: false,
        options: (port) => ({ driver: 'http', url: `http://127.0.0.1:${port}/disk` }),
      },
      {
        name: 'ssh',
        way: ssh,
        writable: true,
        options: (port) => ({
          ...{ driver: 'ssh', server: inet(port), path: `${folder}/remote` },
          'host-key-check': { mode: 'none' },
        }),
      },
      {
        name: 'iscsi',
        way: iscsi,
        writable: true,
        options: (port) => ({
          ...{ driver: 'iscsi', transport: 'tcp', portal: `127.0.0.1:${port}` },
          ...{ target: ISCSI_TARGET, lun: 1 },
        }),
      },
      {
        name: 'nfs',
        way: nfs,
        writable: true,
        options: () => ({
          ...{ driver: 'nfs', server: { type: 'inet', host: '127.0.0.1' } },
          path: `${folder}/share/disk`,
        }),
      },
      {
        name: 'rbd',
        way: rbd,
        writable: true,
        options: () => ({ driver: 'rbd', pool: 'rbd', image: 'disk', conf }),
      },
    ];
    const parts = options.parts.split(',');
    if (parts.includes('convert')) {
      const rows = await convertRows(loads.filter(isWanted), rounds, sizeMib, env);
      if (!readFileSync(out).equals(random)) throw new Error('the copy differs from the image');
      const header = [
        'MiB a second (median)',
        'qblock-img',
        'qemu-img',
        'ratio',
        'CPU s a GiB',
        "qemu-img's",
      ];
      process.stdout.write(`${markdownTable(header, rows)}\n`);
    }
    if (parts.includes('fio')) {
      const settings = { rounds, size: sizeMib, runtime: Number(options.runtime) };
      const rows = await fioRows(folder, served.filter(isWanted), env, settings);
      const daemons = DAEMONS.map(({ program }) => path.basename(program));
      const header = [
        'requests a second (median)',
        ...daemons,
        'ratio',
        'CPU us a request',
        "the original's",
      ];
      process.stdout.write(`${markdownTable(header, rows)}\n`);
    }
  } finally {
    for (const background of running.reverse()) await background.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
