/**
 * `npm run bench:network`: images from elsewhere, side by side with qemu-img. nginx, sshd and vsftpd on loopback, reached
 * directly and through a proxy that answers 5 ms later; `convert` of an image from there (and, with ssh, to there)
 * into a file that exists. The tools share CPU 0, servers and proxy are on CPU 1; the order rotates.
 *
 * As in nbd.ts only figures from one run may be compared.
 *
 * Options: --size MIB (256), --rounds N (3), --load PART of a load's name.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { CLIENT_CPU, SERVER_CPU } from './fio.ts';
import {
  type Argv,
  type Background,
  hasProgram,
  markdownTable,
  median,
  parseOptions,
  pinned,
  startUntil,
} from './measure.ts';

const MIB = 1024 * 1024;
const DELAY_MS = 5;
const qblockImg = path.resolve(import.meta.dirname, '../../daemon/bin/qblock-img');
const TOOLS = [
  { name: 'qblock-img', program: qblockImg },
  { name: 'qemu-img', program: 'qemu-img' },
] as const;

/** Ports of a protocol's server: direct, and behind the delay. */
interface Way {
  readonly direct: number;
  readonly delayed: number;
}

interface Load {
  readonly name: string;
  /** Arguments behind `convert`, for a server on this port. */
  arguments(port: number): readonly string[];
  readonly way: Way;
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}

/** Starts a server and a proxy before it. */
async function withDelay(
  folder: string,
  running: Background[],
  start: (port: number) => Promise<Background>,
): Promise<Way> {
  const direct = await freePort();
  running.push(await start(direct));
  const delayed = await freePort();
  const pid = path.join(folder, `proxy-${delayed}.pid`);
  const proxy = path.join(import.meta.dirname, 'delay-proxy.js');
  const argv: Argv = [process.execPath, proxy, String(delayed), String(direct), String(DELAY_MS), pid];
  running.push(await startUntil(pinned(CLIENT_CPU, argv), pid));
  return { direct, delayed };
}

function nginx(folder: string, tls: boolean) {
  return (port: number): Promise<Background> => {
    const own = path.join(folder, `nginx-${port}`);
    mkdirSync(own);
    const listen = tls
      ? `listen 127.0.0.1:${port} ssl; ssl_certificate ${folder}/cert.pem; ssl_certificate_key ${folder}/key.pem;`
      : `listen 127.0.0.1:${port};`;
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
      .map((name) => `${name}_temp_path ${own}/${name};`)
      .join(' ');
    writeFileSync(
      `${own}/conf`,
      `${process.getuid?.() === 0 ? 'user root;' : ''} daemon off; worker_processes 1; pid ${own}/pid; error_log ${own}/log;
events { worker_connections 256; }
http { access_log off; sendfile on; keepalive_requests 1000000; ${temporary} server { ${listen} root ${folder}; } }`,
    );
    return startUntil(
      pinned(CLIENT_CPU, ['nginx', '-c', `${own}/conf`, '-p', own, '-e', `${own}/log`]),
      `${own}/pid`,
    );
  };
}

function sshd(folder: string) {
  return (port: number): Promise<Background> => {
    for (const name of ['host', 'user'])
      execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(folder, name)]);
    if (process.getuid?.() === 0) mkdirSync('/run/sshd', { recursive: true });
    writeFileSync(
      `${folder}/sshd_config`,
      `Port ${port}\nListenAddress 127.0.0.1\nHostKey ${folder}/host\nPidFile ${folder}/sshd.pid\n` +
        `AuthorizedKeysFile ${folder}/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n`,
    );
    const argv: Argv = ['/usr/sbin/sshd', '-D', '-f', `${folder}/sshd_config`, '-E', `${folder}/sshd.log`];
    return startUntil(pinned(CLIENT_CPU, argv), `${folder}/sshd.pid`);
  };
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

async function startAgent(folder: string, running: Background[]): Promise<NodeJS.ProcessEnv> {
  const socket = path.join(folder, 'agent');
  running.push(await startUntil(['ssh-agent', '-D', '-a', socket], socket));
  const env = { ...process.env, SSH_AUTH_SOCK: socket };
  execFileSync('ssh-add', ['-q', path.join(folder, 'user')], { env });
  return env;
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), { size: '256', rounds: '3', load: '' });
  for (const tool of ['qemu-img', 'taskset', 'nginx', 'ssh-agent', 'openssl'])
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  const sizeMib = Number(options.size);
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-bench-'));
  const running: Background[] = [];
  try {
    const disk = path.join(folder, 'disk');
    const out = path.join(folder, 'out');
    const random = execFileSync('head', ['-c', String(sizeMib * MIB), '/dev/urandom'], {
      maxBuffer: 2 ** 31,
    });
    writeFileSync(disk, random);
    copyFileSync(disk, out);
    copyFileSync(disk, `${folder}/remote`);
    const subject = ['-subj', '/CN=localhost', '-days', '2', '-nodes', '-newkey', 'rsa:2048'];
    execFileSync(
      'openssl',
      ['req', '-x509', ...subject, '-keyout', `${folder}/key.pem`, '-out', `${folder}/cert.pem`],
      {
        stdio: 'ignore',
      },
    );
    const http = await withDelay(folder, running, nginx(folder, false));
    const https = await withDelay(folder, running, nginx(folder, true));
    const ssh = await withDelay(folder, running, sshd(folder));
    const env = await startAgent(folder, running);
    const into = ['-n', '-W', '-O', 'raw'];
    const sshName = (port: number, file: string): string =>
      `ssh://127.0.0.1:${port}${folder}/${file}?host_key_check=no`;
    const loads: readonly Load[] = [
      {
        name: 'http',
        way: http,
        arguments: (port) => [...into, '-f', 'raw', `http://127.0.0.1:${port}/disk`, out],
      },
      {
        name: 'https',
        way: https,
        arguments: (port) => [
          ...[...into, '--image-opts'],
          `driver=raw,file.driver=https,file.sslverify=off,file.url=https://127.0.0.1:${port}/disk`,
          out,
        ],
      },
      {
        name: 'ssh, read',
        way: ssh,
        arguments: (port) => [...into, '-f', 'raw', sshName(port, 'disk'), out],
      },
      {
        name: 'ssh, write',
        way: ssh,
        arguments: (port) => [...into, '-f', 'raw', disk, sshName(port, 'remote')],
      },
    ];
    const rows: string[][] = [];
    for (const load of loads.filter(({ name }) => name.includes(options.load))) {
      for (const [delay, port] of [
        ['0 ms', load.way.direct],
        [`${DELAY_MS} ms`, load.way.delayed],
      ] as const) {
        const results = new Map<string, { wall: number; cpu: number }[]>(TOOLS.map(({ name }) => [name, []]));
        for (let round = 0; round < Number(options.rounds); round++)
          for (let i = 0; i < TOOLS.length; i++) {
            const { name, program } = TOOLS[(i + round) % TOOLS.length]!;
            results.get(name)!.push(measure(program, load.arguments(port), env));
          }
        const middle = (name: string, key: 'wall' | 'cpu'): number =>
          median(results.get(name)!.map((result) => result[key]));
        const speed = (name: string): number => sizeMib / middle(name, 'wall');
        rows.push([
          `${load.name}, ${delay}`,
          speed('qblock-img').toFixed(0),
          speed('qemu-img').toFixed(0),
          `${(speed('qblock-img') / speed('qemu-img')).toFixed(2)}x`,
          ((middle('qblock-img', 'cpu') * 1024) / sizeMib).toFixed(2),
          ((middle('qemu-img', 'cpu') * 1024) / sizeMib).toFixed(2),
        ]);
        process.stderr.write(`${rows.at(-1)!.join('  ')}\n`);
      }
    }
    if (!readFileSync(out).equals(random)) throw new Error('the copy differs from the image');
    const header = ['MiB a second (median)', 'qblock-img', 'qemu-img', 'ratio', 'CPU s a GiB', "qemu-img's"];
    process.stdout.write(`${markdownTable(header, rows)}\n`);
  } finally {
    for (const background of running.reverse()) await background.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
