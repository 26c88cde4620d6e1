/**
 * vhost-user-blk and FUSE exports beside the original's: requests a second and the server's CPU time a request.
 *
 *   npm run bench:exports -- [--runtime SECONDS] [--rounds N] [--size MiB] [--only vhost|fuse] [--dir FOLDER]
 *
 * Server and client each have a CPU. FUSE is driven by fio on the file; vhost-user-blk by a front end of our own, which
 * is this program started again (`--load`), since no other one does without a virtual machine. The servers of one load
 * run one after another, round by round; only figures of one run may be compared. Writes dirty pages of the image: where the
 * disk holds them up, --dir /dev/shm shows what the servers cost (but there reads cannot be tried without waiting). The
 * image is written in small pieces: a file system that has it in large ones goes through a whole large one at each 4k
 * write, which costs more than everything else and is the kernel's. Each server begins with a clean image.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { allocateIoMemory, vectorOf } from '../src/aio/memory.ts';
import { VirtioBlockDriver } from '../src/virtio/block-driver.ts';
import { CLIENT_CPU, type Load, load, qblockd, SERVER_CPU, syncFile } from './fio.ts';
import { cpuOf, hasProgram, markdownTable, median, parseOptions, pinned, startUntil } from './measure.ts';

interface Figure {
  readonly perSecond: number;
  readonly cpuUs: number;
}

interface Case {
  readonly kind: 'vhost' | 'fuse';
  readonly load: Load;
  readonly queues: number;
}

const SERVERS = [qblockd, 'qemu-storage-daemon'];

const cases: readonly Case[] = [
  ...[1, 16, 64].flatMap((depth) =>
    (['randread', 'randwrite'] as const).flatMap((rw) =>
      (depth === 1 ? [1] : [1, 2]).map(
        (queues): Case => ({ kind: 'vhost', load: load(rw, '4k', depth), queues }),
      ),
    ),
  ),
  ...(
    [
      ['randread', '4k', 1],
      ['randread', '4k', 16],
      ['randwrite', '4k', 1],
      ['randwrite', '4k', 16],
      ['read', '256k', 4],
      ['write', '256k', 4],
    ] as const
  ).map(([rw, size, depth]): Case => ({ kind: 'fuse', load: load(rw, size, depth), queues: 1 })),
];

// ---- the load of a front end -----------------------------------------------------------------------------------

/** Keeps so many requests under way for so long; prints how many were done. */
async function runLoad(
  socket: string,
  rw: string,
  depth: number,
  queues: number,
  seconds: number,
  bytes: number,
): Promise<void> {
  const driver = await VirtioBlockDriver.open({
    path: socket,
    queues,
    depth: Math.ceil(depth / queues),
    reconnect: false,
  });
  const blocks = Math.floor(bytes / 4096);
  const endMs = performance.now() + seconds * 1000;
  let done = 0;
  let state = 1;
  const one = async (): Promise<void> => {
    const vec = vectorOf(allocateIoMemory(4096));
    while (performance.now() < endMs) {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      const offset = (state % blocks) * 4096;
      await (rw === 'randread' ? driver.read(offset, vec) : driver.write(offset, vec));
      done++;
    }
  };
  await Promise.all(Array.from({ length: depth }, one));
  driver.close();
  process.stdout.write(`${done}\n`);
}

// ---- measuring -------------------------------------------------------------------------------------------------

function clientOf(
  { kind, load: { rw, blockSize, depth }, queues }: Case,
  place: string,
  seconds: number,
  sizeMib: number,
) {
  const argv =
    kind === 'vhost'
      ? [
          process.execPath,
          process.argv[1] as string,
          '--load',
          place,
          rw,
          depth,
          queues,
          seconds,
          sizeMib * 2 ** 20,
        ]
      : [
          ...['fio', '--name=bench', '--ioengine=libaio', '--direct=1', `--filename=${place}`, `--rw=${rw}`],
          ...[`--bs=${blockSize}`, `--iodepth=${depth}`, `--size=${sizeMib}m`, `--runtime=${seconds}`],
          ...['--time_based', '--randseed=1', '--output-format=json'],
        ];
  const [program, ...args] = pinned(CLIENT_CPU, argv.map(String) as [string, ...string[]]);
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 64 << 20 });
  if (status !== 0) throw new Error(`the client failed: ${stderr || stdout}`);
  if (kind === 'vhost') return Number(stdout) / seconds;
  const report = JSON.parse(stdout.slice(stdout.search(/^\{/m))) as {
    jobs: { read: { iops: number }; write: { iops: number } }[];
  };
  const job = report.jobs[0];
  return Math.max(job?.read.iops ?? 0, job?.write.iops ?? 0);
}

async function measure(
  one: Case,
  server: string,
  image: string,
  seconds: number,
  sizeMib: number,
): Promise<Figure> {
  syncFile(image);
  const dir = mkdtempSync(path.join(tmpdir(), 'qbb-'));
  const place = `${dir}/x`;
  if (one.kind === 'fuse') writeFileSync(place, '');
  const exported =
    one.kind === 'vhost'
      ? `vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path=${place},num-queues=${one.queues}`
      : `fuse,id=e,node-name=f,writable=on,mountpoint=${place}`;
  const argv = [
    '--blockdev',
    `file,node-name=f,filename=${image}`,
    '--export',
    exported,
    '--pidfile',
    `${dir}/pid`,
  ];
  const running = await startUntil(pinned(SERVER_CPU, [server, ...argv]), `${dir}/pid`);
  try {
    const pid = running.child.pid as number;
    const before = cpuOf(pid);
    const perSecond = clientOf(one, place, seconds, sizeMib);
    const after = cpuOf(pid);
    const used = after.userSeconds + after.kernelSeconds - before.userSeconds - before.kernelSeconds;
    return { perSecond, cpuUs: (used * 1e6) / (perSecond * seconds) };
  } finally {
    await running.stop();
    spawnSync('umount', ['-l', place], { stdio: 'ignore' });
    rmSync(dir, { recursive: true, force: true });
  }
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), {
    runtime: '2',
    rounds: '3',
    size: '256',
    only: '',
    dir: tmpdir(),
  });
  const [seconds, rounds, sizeMib] = [Number(options.runtime), Number(options.rounds), Number(options.size)];
  const servers = SERVERS.filter((server) => hasProgram(server));
  const dir = mkdtempSync(path.join(options.dir, 'qbb-'));
  const image = `${dir}/disk`;
  const fd = openSync(image, 'w');
  const page = Buffer.alloc(4096, 0x5a);
  for (let at = 0; at < sizeMib * 2 ** 20; at += page.length) writeSync(fd, page, 0, page.length, at);
  closeSync(fd);
  const rows: string[][] = [];
  try {
    for (const one of cases.filter(({ kind }) => options.only === '' || options.only === kind)) {
      const figures = servers.map((): Figure[] => []);
      for (let round = 0; round < rounds; round++)
        for (const [i, server] of servers.entries())
          figures[i]?.push(await measure(one, server, image, seconds, sizeMib));
      const [ours, theirs] = figures.map((list) => ({
        perSecond: median(list.map((figure) => figure.perSecond)),
        cpuUs: median(list.map((figure) => figure.cpuUs)),
      }));
      const queues = one.kind === 'vhost' ? `, ${one.queues} queue${one.queues > 1 ? 's' : ''}` : '';
      rows.push([
        `${one.kind} ${one.load.name}${queues}`,
        (ours?.perSecond ?? 0).toFixed(0),
        (ours?.cpuUs ?? 0).toFixed(1),
        theirs === undefined ? '-' : theirs.perSecond.toFixed(0),
        theirs === undefined ? '-' : theirs.cpuUs.toFixed(1),
        theirs === undefined ? '-' : ((ours?.perSecond ?? 0) / theirs.perSecond).toFixed(2),
      ]);
      process.stderr.write(`${rows.at(-1)?.join('  ')}\n`);
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
  const header = ['load', 'qblockd /s', 'CPU us', 'qemu-storage-daemon /s', 'CPU us', 'ratio'];
  process.stdout.write(`${markdownTable(header, rows)}\n`);
}

if (process.argv[2] === '--load') {
  const [socket = '', rw = '', ...numbers] = process.argv.slice(3);
  const [depth = 1, queues = 1, seconds = 1, bytes = 4096] = numbers.map(Number);
  await runLoad(socket, rw, depth, queues, seconds, bytes);
} else {
  await main();
}
