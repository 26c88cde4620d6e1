/**
 * `npm run bench:network`: images from elsewhere, side by side with the original. nginx, sshd, tgtd, nfs-ganesha and Ceph on
 * loopback (as root, with no port mapper running), reached directly and, but for Ceph, through a proxy that answers 5 ms
 * later. Three parts: `convert` of an image from there and to there, from and into files that exist; `jobs` in the daemon
 * from there into a new image; and `fio` over NBD on a daemon whose node it is. Tools and daemons share CPU 0, servers,
 * proxy and fio are on CPU 1; the order rotates. All files are in memory (--folder), so that no disk is measured.
 *
 * As in nbd.ts only figures from one run may be compared.
 *
 * Options: --size MIB (1024), --rounds N (3), --load START of a load's name, --runtime SECONDS of fio (2),
 * --parts convert,jobs,fio, --folder FOLDER (/dev/shm).
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import path from 'node:path';
import { hasProgram, parseOptions, startUntil } from '../measure.ts';
import { type ConvertLoad, convertTable } from './convert.ts';
import type { RemoteNode } from './daemons.ts';
import { type Images, makeImages } from './images.ts';
import { jobsTable } from './jobs.ts';
import { requestsTable } from './requests.ts';
import {
  ceph,
  ganesha,
  ISCSI_TARGET,
  nginx,
  type Running,
  registerNfs,
  sshd,
  tgtd,
  type Way,
  withDelay,
} from './servers.ts';

const PROGRAMS = [
  ...['qemu-img', 'taskset', 'nginx', 'ssh-agent', 'openssl', 'tgtd', 'ganesha.nfsd', 'ceph-mon', 'cmp'],
];
const PROTOCOLS = ['http', 'https', 'ssh', 'iscsi', 'nfs', 'rbd'] as const;
type Protocol = (typeof PROTOCOLS)[number];

async function startAgent(folder: string, running: Running[]): Promise<NodeJS.ProcessEnv> {
  const socket = path.join(folder, 'agent');
  running.push(await startUntil(['ssh-agent', '-D', '-a', socket], socket));
  const env = { ...process.env, SSH_AUTH_SOCK: socket };
  execFileSync('ssh-add', ['-q', path.join(folder, 'user')], { env });
  return env;
}

/** The servers that are wanted, and how to reach them. `env` has the agent of the user of ssh. */
async function startServers(
  folder: string,
  running: Running[],
  images: Images,
  wants: (protocol: Protocol) => boolean,
): Promise<{ ways: ReadonlyMap<Protocol, Way>; env: NodeJS.ProcessEnv; conf: string }> {
  const subject = ['-subj', '/CN=localhost', '-days', '2', '-nodes', '-newkey', 'rsa:2048'];
  const keys = ['-keyout', `${folder}/key.pem`, '-out', `${folder}/cert.pem`];
  execFileSync('openssl', ['req', '-x509', ...subject, ...keys], { stdio: 'ignore' });
  const ways = new Map<Protocol, Way>();
  let env: NodeJS.ProcessEnv = process.env;
  let conf = '';
  if (wants('http')) ways.set('http', await withDelay(folder, running, nginx(folder, false)));
  if (wants('https')) ways.set('https', await withDelay(folder, running, nginx(folder, true)));
  if (wants('ssh')) {
    images.copy('remote');
    ways.set('ssh', await withDelay(folder, running, sshd(folder)));
    env = await startAgent(folder, running);
  }
  if (wants('iscsi')) ways.set('iscsi', await withDelay(folder, running, tgtd(folder, images.copy('iscsi'))));
  if (wants('nfs')) {
    images.copy('share/disk');
    const way = await withDelay(folder, running, ganesha(folder, running));
    ways.set('nfs', { ...way, use: registerNfs });
  }
  if (wants('rbd')) {
    conf = await ceph(folder, running, images.disk);
    // The OSD tells its clients its own address: there is no proxy in between.
    ways.set('rbd', { direct: 0, delayed: 0 });
  }
  return { ways, env, conf };
}

/** Conversions from and to each protocol. */
function convertLoads(
  folder: string,
  images: Images,
  ways: ReadonlyMap<Protocol, Way>,
  conf: string,
): ConvertLoad[] {
  const out = images.copy('out');
  const { disk } = images;
  const into = ['-n', '-W', '-O', 'raw'];
  const none: Way = { direct: 0, delayed: 0 };
  const http = ways.get('http');
  const loads: ConvertLoad[] = [];
  if (http !== undefined) {
    const packed = images.packed();
    const sources = [
      { name: 'http, raw', format: 'raw', file: disk, content: disk },
      { name: 'http, qcow2', format: 'qcow2', file: images.qcow2(), content: disk },
      { name: 'http, compressed qcow2', format: 'qcow2', file: packed.image, content: packed.content },
    ];
    for (const { name, format, file, content } of sources)
      loads.push({
        ...{ name, way: http, equal: [content, out] },
        arguments: (port) => [
          ...[...into, '-f', format, `http://127.0.0.1:${port}/${path.basename(file)}`, out],
        ],
      });
  }
  const both = (protocol: Protocol, name: (port: number, file: string) => string): void => {
    const way = ways.get(protocol) ?? none;
    loads.push({
      ...{ name: `${protocol}, read`, way, equal: [disk, out] },
      arguments: (port) => [...into, '-f', 'raw', name(port, 'disk'), out],
    });
    loads.push({
      ...{ name: `${protocol}, write`, way, equal: null },
      arguments: (port) => [...into, '-f', 'raw', disk, name(port, 'remote')],
    });
  };
  const https = ways.get('https');
  if (https !== undefined)
    loads.push({
      ...{ name: 'https, raw', way: https, equal: [disk, out] },
      arguments: (port) => [
        ...[...into, '--image-opts'],
        `driver=raw,file.driver=https,file.sslverify=off,file.url=https://127.0.0.1:${port}/disk`,
        out,
      ],
    });
  both('ssh', (port, file) => `ssh://127.0.0.1:${port}${folder}/${file}?host_key_check=no`);
  both('iscsi', (port) => `iscsi://127.0.0.1:${port}/${ISCSI_TARGET}/1`);
  both('nfs', () => `nfs://127.0.0.1${folder}/share/disk`);
  both('rbd', () => `rbd:rbd/disk:conf=${conf}`);
  return loads.filter(({ name }) => ways.has(name.slice(0, name.indexOf(',')) as Protocol));
}

/** A node of each protocol. */
function remoteNodes(
  folder: string,
  images: Images,
  ways: ReadonlyMap<Protocol, Way>,
  conf: string,
): RemoteNode[] {
  const inet = (port: number): object => ({ host: '127.0.0.1', port: String(port) });
  const options: Readonly<Record<Protocol, RemoteNode['options']>> = {
    http: (port) => ({ driver: 'http', url: `http://127.0.0.1:${port}/${path.basename(images.disk)}` }),
    https: (port) => ({ driver: 'https', url: `https://127.0.0.1:${port}/disk`, sslverify: false }),
    ssh: (port) => ({
      ...{ driver: 'ssh', server: inet(port), path: `${folder}/remote`, 'host-key-check': { mode: 'none' } },
    }),
    iscsi: (port) => ({
      ...{ driver: 'iscsi', transport: 'tcp', portal: `127.0.0.1:${port}`, target: ISCSI_TARGET, lun: 1 },
    }),
    nfs: () => ({
      ...{ driver: 'nfs', server: { type: 'inet', host: '127.0.0.1' }, path: `${folder}/share/disk` },
    }),
    rbd: () => ({ driver: 'rbd', pool: 'rbd', image: 'disk', conf }),
  };
  return PROTOCOLS.flatMap((name) => {
    const way = ways.get(name);
    return way === undefined
      ? []
      : [{ name, way, writable: !name.startsWith('http'), options: options[name] }];
  });
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    ...{ size: '1024', rounds: '3', load: '', runtime: '2', parts: 'convert,jobs,fio', folder: '/dev/shm' },
  });
  for (const tool of PROGRAMS) if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const rounds = Number(options.rounds);
  const folder = mkdtempSync(path.join(options.folder, 'qb-bench-'));
  const running: Running[] = [];
  const isWanted = ({ name }: { readonly name: string }): boolean => name.startsWith(options.load);
  const startsAlike = (protocol: Protocol): boolean =>
    `${protocol},`.startsWith(options.load) || options.load.startsWith(`${protocol},`);
  const parts = options.parts.split(',');
  const print = (table: string): void => void process.stdout.write(`${table}\n\n`);
  try {
    const images = makeImages(folder, sizeMib);
    const { ways, env, conf } = await startServers(folder, running, images, startsAlike);
    const nodes = remoteNodes(folder, images, ways, conf);
    if (parts.includes('convert')) {
      const loads = convertLoads(folder, images, ways, conf).filter(isWanted);
      print(await convertTable(loads, rounds, sizeMib, env));
    }
    if (parts.includes('jobs')) print(await jobsTable(folder, nodes, env, { rounds, size: sizeMib }));
    if (parts.includes('fio')) {
      const settings = { rounds, size: sizeMib, runtime: Number(options.runtime) };
      print(await requestsTable(folder, nodes, env, settings));
    }
  } finally {
    for (const background of running.reverse()) await background.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
