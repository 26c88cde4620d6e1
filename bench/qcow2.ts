/**
 * `npm run bench:qcow2`: qcow2 images over NBD, qblockd beside qemu-storage-daemon, with fio's nbd engine.
 *
 * Every measurement starts a server of its own on an image of its own, since writes change what they are measured on;
 * for each load the servers follow one another, the order rotates from round to round, and the table shows medians. A
 * second of the same load comes before each and does not count.
 *
 * Options: --runtime SECONDS (2), --rounds N (3), --only PART[,PART...] of server names, --load PART of a load's name,
 * --realtime (server and client go before whatever else the machine does; takes privileges), --size MIB (1024) of data, --dir FOLDER for the images, --json FILE for every single result.
 */

import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { FiguresTable } from './figures.ts';
import {
  type Figures,
  fileSystemOf,
  type Load,
  load,
  qblockd,
  runFio,
  SERVER_CPU,
  syncFile,
  thousands,
  warmUp,
} from './fio.ts';
import {
  type Argv,
  hasProgram,
  median,
  parseOptions,
  pinned,
  prefer,
  sleep,
  startUntil,
  touchMemory,
} from './measure.ts';

interface ImageLoad extends Load {
  readonly image: 'full' | 'empty' | 'chain' | 'scattered';
  /** Size fio works on in MiB; null: the data's. */
  readonly spanMib: number | null;
  readonly extra: readonly string[];
  /** The measurement begins with the pages dirty that it writes to: the file system has nothing to do for them. */
  readonly isDirty?: boolean;
}

const EMPTY_MIB = 64 * 1024;
const SCATTERED_MIB = 1024 * 1024;
/** One cluster of data in each such stretch of the scattered image. */
const STRETCH_MIB = 64;
const CHAIN_LENGTH = 10;
/** What a second of warm-up has written every page of. */
const DIRTY_SPAN_MIB = 64;

function imageLoad(
  image: ImageLoad['image'],
  what: string,
  basis: Load,
  spanMib: number | null = null,
  extra: readonly string[] = [],
): ImageLoad {
  return { ...basis, name: `${basis.name}, ${what}`, image, spanMib, extra };
}

const LOADS: readonly ImageLoad[] = [
  ...[1, 16, 64].map((depth) => imageLoad('full', 'allocated', load('randread', '4k', depth))),
  ...[1, 16, 64].map((depth) => imageLoad('full', 'allocated', load('randwrite', '4k', depth))),
  ...[16, 64].map((depth) => ({
    ...imageLoad('full', 'allocated, dirty pages', load('randwrite', '4k', depth), DIRTY_SPAN_MIB),
    isDirty: true,
  })),
  imageLoad('full', 'allocated', load('read', '256k', 8)),
  imageLoad('full', 'allocated', load('write', '256k', 8)),
  imageLoad('empty', 'allocating', load('randwrite', '4k', 16), EMPTY_MIB, ['--norandommap']),
  imageLoad('empty', 'allocating', load('write', '64k', 16), EMPTY_MIB),
  imageLoad('chain', `chain of ${CHAIN_LENGTH}`, load('randread', '4k', 16)),
  imageLoad('scattered', '1 TiB image', load('randread', '4k', 16), SCATTERED_MIB, [
    `--blockalign=${STRETCH_MIB}m`,
    '--norandommap',
  ]),
];

interface Server {
  readonly name: string;
  readonly program: string;
  readonly aio: string;
}

const SERVERS: readonly Server[] = [
  { name: 'qblockd', program: qblockd, aio: '' },
  { name: 'qemu threads', program: 'qemu-storage-daemon', aio: 'threads' },
  { name: 'qemu io_uring', program: 'qemu-storage-daemon', aio: 'io_uring' },
];

function serverArgv({ program, aio }: Server, image: string, socket: string): Argv {
  return [
    program,
    ...['--blockdev', `file,node-name=file,filename=${image}${aio && `,aio=${aio}`}`],
    ...['--blockdev', 'qcow2,node-name=disk,file=file'],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
  ];
}

function run(program: string, ...args: readonly string[]): string {
  const result = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 64 << 20 });
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}`);
  return result.stdout;
}

/** The images all measurements start from; made by the original's tools, which nobody here is measured by. */
interface Templates {
  readonly full: string;
  readonly chain: string;
  readonly scattered: string;
}

function makeTemplates(folder: string, sizeMib: number): Templates {
  const raw = path.join(folder, 'data.raw');
  const full = path.join(folder, 'full.qcow2');
  run('sh', '-c', `head -c ${sizeMib}M /dev/urandom > ${raw}`);
  run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, full);
  rmSync(raw);
  let chain = full;
  for (let i = 1; i < CHAIN_LENGTH; i++) {
    const next = path.join(folder, `chain${i}.qcow2`);
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', chain, '-F', 'qcow2', next);
    chain = next;
  }
  const scattered = path.join(folder, 'scattered.qcow2');
  run('qemu-img', 'create', '-q', '-f', 'qcow2', scattered, `${SCATTERED_MIB}M`);
  const commands: string[] = [];
  for (let at = 0; at < SCATTERED_MIB; at += STRETCH_MIB)
    commands.push(`write -q -P ${(at / 64) % 251} ${at}M 64k`);
  const result = spawnSync('qemu-io', ['-t', 'unsafe', '-f', 'qcow2', scattered], {
    input: `${commands.join('\n')}\n`,
    encoding: 'utf8',
  });
  if (result.status !== 0) throw new Error(`qemu-io: ${result.stderr}`);
  return { full, chain, scattered };
}

/** The image a load is measured on: a copy where it is going to be written. */
function prepare(load: ImageLoad, templates: Templates, folder: string): string {
  const own = path.join(folder, 'image.qcow2');
  switch (load.image) {
    case 'empty':
      run('qemu-img', 'create', '-q', '-f', 'qcow2', own, `${EMPTY_MIB}M`);
      return own;
    case 'chain':
      return templates.chain;
    case 'scattered':
      return templates.scattered;
    default:
      if (load.rw === 'read' || load.rw === 'randread') return templates.full;
      copyFileSync(templates.full, own);
      return own;
  }
}

interface Run {
  readonly runtimeSeconds: number;
  readonly sizeMib: number;
  /** Servers and clients go before whatever else the machine does. */
  readonly isRealtime: boolean;
}

/** More than what is written to an empty image while it counts. */
const TOUCHED_MIB = 3072;
/** Where an empty image is written to before it counts: not where it is measured. */
const WARM_UP_PLACE = ['--offset=50%'];

async function measure(
  server: Server,
  each: ImageLoad,
  templates: Templates,
  folder: string,
  { runtimeSeconds, sizeMib, isRealtime }: Run,
): Promise<Figures> {
  const image = prepare(each, templates, folder);
  syncFile(image);
  const socket = path.join(folder, 'socket');
  const { child, stop } = await startUntil(pinned(SERVER_CPU, serverArgv(server, image, socket)), socket);
  try {
    await sleep(300);
    if (isRealtime) prefer(child.pid!);
    const spanMib = each.spanMib ?? sizeMib;
    const { extra } = each;
    const place = each.image === 'empty' ? WARM_UP_PLACE : [];
    warmUp(socket, each, spanMib, { extra: [...extra, ...place], isRealtime });
    if (each.image === 'empty') touchMemory(TOUCHED_MIB);
    if (each.isDirty !== true && (each.rw === 'write' || each.rw === 'randwrite')) syncFile(image);
    return runFio(socket, child.pid!, each, runtimeSeconds, spanMib, { extra, isRealtime });
  } finally {
    await stop();
    rmSync(socket, { force: true });
  }
}

/**
 * Milliseconds from sending blockdev-add of the scattered image to its reply: the first command of a process, and once more
 * after the node has been deleted.
 */
async function measureOpen(
  server: Server,
  image: string,
  folder: string,
): Promise<readonly [first: number, again: number]> {
  const socket = path.join(folder, 'qmp');
  const { stop } = await startUntil(
    pinned(SERVER_CPU, [
      server.program,
      ...['--chardev', `socket,id=qmp,path=${socket},server=on,wait=off`],
      ...['--monitor', 'chardev=qmp'],
    ]),
    socket,
  );
  try {
    // The socket is there a moment before anybody listens on it.
    await sleep(200);
    const client = createConnection(socket).setEncoding('utf8');
    let text = '';
    client.on('data', (part: string) => {
      text += part;
    });
    const replies = async (count: number): Promise<void> => {
      while (text.split('\r\n').length - 1 < count)
        await new Promise((resolve) => client.once('data', resolve));
    };
    await replies(1);
    client.write('{"execute":"qmp_capabilities"}\n');
    await replies(2);
    await sleep(200);
    const options = { driver: 'qcow2', 'node-name': 'disk', file: { driver: 'file', filename: image } };
    let count = 2;
    const execute = async (name: string, args: unknown): Promise<number> => {
      const startMs = performance.now();
      client.write(`${JSON.stringify({ execute: name, arguments: args })}\n`);
      await replies(++count);
      const ms = performance.now() - startMs;
      if (!text.split('\r\n')[count - 1]!.includes('return')) throw new Error(text);
      return ms;
    };
    const first = await execute('blockdev-add', options);
    await execute('blockdev-del', { 'node-name': 'disk' });
    const again = await execute('blockdev-add', options);
    client.destroy();
    return [first, again];
  } finally {
    await stop();
    rmSync(socket, { force: true });
  }
}

async function main(): Promise<void> {
  const argv = process.argv.slice(2);
  const isRealtime = argv.includes('--realtime');
  const options = parseOptions(
    argv.filter((each) => each !== '--realtime'),
    {
      runtime: '2',
      rounds: '3',
      only: '',
      load: '',
      size: '1024',
      dir: tmpdir(),
      json: '',
    },
  );
  for (const tool of ['fio', 'taskset', 'qemu-img', 'qemu-io']) {
    if (!hasProgram(tool)) throw new Error(`${tool} is needed`);
  }
  const rounds = Number(options.rounds);
  const runtimeSeconds = Number(options.runtime);
  const sizeMib = Number(options.size);
  if (!(rounds >= 1 && runtimeSeconds >= 1 && sizeMib >= 1)) throw new Error('numbers must be at least 1');
  process.on('SIGINT', () => undefined);
  const loads = LOADS.filter((each) => each.name.includes(options.load));
  const servers = SERVERS.filter(
    ({ name, program }) => options.only.split(',').some((part) => name.includes(part)) && hasProgram(program),
  );
  const folder = mkdtempSync(path.join(options.dir, 'qb-bench-'));
  const table = new FiguresTable();
  const opening = new Map<string, (readonly [number, number])[]>(servers.map(({ name }) => [name, []]));
  try {
    process.stderr.write('making the images\n');
    const templates = makeTemplates(folder, sizeMib);
    for (let round = 0; round < rounds; round++) {
      const order = servers.map((_, index) => servers[(index + round) % servers.length]!);
      for (const server of order)
        opening.get(server.name)?.push(await measureOpen(server, templates.scattered, folder));
      for (const each of loads) {
        for (const server of order) {
          const figures = await measure(server, each, templates, folder, {
            runtimeSeconds,
            sizeMib,
            isRealtime,
          });
          table.add(each.name, server.name, figures);
          process.stderr.write(
            `round ${round + 1}/${rounds}, ${each.name}, ${server.name}: ${thousands(figures.requestsPerSecond)}, ` +
              `${(figures.userUs + figures.kernelUs).toFixed(1)} us\n`,
          );
        }
      }
    }
    process.stdout.write(`${table.format('qblockd', [])}\n`);
    const times = servers.map(({ name }) => {
      const both = opening.get(name) ?? [];
      const [first, again] = [0, 1].map((at) => median(both.map((pair) => pair[at]!)).toFixed(1));
      return `${name} ${first} and ${again} ms`;
    });
    process.stdout.write(
      `Opening the 1 TiB image (blockdev-add, median; first in a process and again): ${times.join(', ')}.\n`,
    );
    process.stdout.write(
      `${new Date().toISOString().slice(0, 10)}, ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, server and client on one ` +
        `CPU each; ${sizeMib} MiB of data on ${fileSystemOf(folder)} in the page cache, UNIX socket; ` +
        `${rounds} rounds of ${runtimeSeconds} s, interleaved.\n`,
    );
    if (options.json !== '') writeFileSync(options.json, JSON.stringify(table, null, 1));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
