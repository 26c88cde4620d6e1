/** Names of NBD exports on the tools' command lines: qblock-img and qemu-img say the same of each. */

import { execFile, spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { limitMs, waitUntil } from '../patience.ts';
import { makeScratchDir, repositoryRoot } from './daemons.ts';
import { hasPeer, requirePeer } from './requires.ts';

const ready = hasPeer('qemu-nbd') && hasPeer('qemu-img');
const MiB = 1024 * 1024;
const PORT = 20_000 + (process.pid % 10_000);

let dir: string;

async function serve(name: string, args: readonly string[]): Promise<void> {
  const pid = path.join(dir, `${name}.pid`);
  spawn('qemu-nbd', [
    '-f',
    'raw',
    '-t',
    '-e',
    '16',
    '--pid-file',
    pid,
    ...args,
    path.join(dir, `${name}.raw`),
  ]);
  await waitUntil('nbdkit or qemu-nbd to be there', () => existsSync(pid));
}

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  for (const name of ['unix', 'tcp', 'target', 'source']) {
    writeFileSync(path.join(dir, `${name}.raw`), Buffer.alloc(65536, 5));
    truncateSync(path.join(dir, `${name}.raw`), 4 * MiB);
  }
  await serve('unix', ['-x', 'exp', '-k', path.join(dir, 's')]);
  await serve('tcp', ['-b', '127.0.0.1', '-p', String(PORT)]);
  await serve('target', ['-k', path.join(dir, 't')]);
});

afterAll(() => {
  if (!ready) return;
  for (const name of ['unix', 'tcp', 'target'])
    process.kill(Number(readFileSync(path.join(dir, `${name}.pid`), 'utf8')));
  rmSync(dir, { recursive: true });
});

/** $S: a socket with an export `exp`, $P: a port with an export without name. */
const NAMES: readonly string[] = [
  'nbd:unix:$S:exportname=exp',
  'nbd:unix:$S',
  'nbd:unix:$S:exportname=exp:x',
  'nbd:unix:',
  'nbd+unix:///exp?socket=$S',
  'nbd+unix:///%65xp?socket=$S',
  'nbd+unix://exp?socket=$S',
  'nbd+unix:///exp',
  'nbd+unix:///exp?socket=$S&x=y',
  'nbd:127.0.0.1:$P',
  'nbd:localhost:$P:exportname=',
  'nbd:localhost:$P:x',
  'nbd:localhost:$P,x',
  'nbd://localhost:$P',
  'nbd://localhost:$P/',
  'nbd://localhost:$P/#f',
  'nbd://localhost:$P//a',
  'nbd+tcp://127.0.0.1:$P',
  'nbd://127.0.0.1:$P?socket=$S',
  'nbd://localhost:99999',
  'nbd:[::1]:1',
  'nbd://',
  'nbd:',
  'nbd:localhost',
  'nbds://localhost:$P',
  'json:{"driver":"nbd"}',
  'json:{"driver":"nbd","path":"$S","export":"exp"}',
  'json:{"driver":"nbd","port":"$P"}',
  'json:{"driver":"nbd","host":"localhost","path":"/x"}',
  'json:{"driver":"nbd","server":{"type":"inet","host":"localhost","port":"$P"},"host":"x"}',
  'json:{"driver":"nbd","server.type":"unix","server.path":"$S","export":"exp"}',
  'json:{"driver":"nbd","server.type":"foo"}',
  'json:{"driver":"nbd","server.type":"inet","server.host":"localhost"}',
  'json:{"driver":"nbd","server.type":"inet","server.host":"localhost","server.port":"$P","server.foo":"on"}',
  'json:{"driver":"nbd","server.type":"fd","server.str":"77"}',
  'json:{"driver":"raw","file.driver":"nbd","file.path":"$S","file.export":"exp"}',
];

/** One after the other: what one does the next finds. $T: an export to be written. */
const COMMANDS: readonly string[] = [
  'info --image-opts driver=nbd,server.type=unix,server.path=$S,export=exp',
  'info --image-opts driver=nbd,host=localhost,port=$P',
  'create -f raw $T 4M',
  'create -f raw $T 5M',
  'create -f qcow2 $T 2M',
  'info $T',
  'convert -f raw -O qcow2 $DIR/source.raw $T',
  'compare -f raw -F qcow2 $DIR/source.raw $T',
  'check -f qcow2 $T',
  'map -f qcow2 $T',
  'convert -n -f raw -O raw $DIR/source.raw $T',
  'map -f raw $T',
  'resize -f raw $T 8M',
  'measure -O qcow2 $T',
  'create -f raw -o preallocation=full $T 4M',
  'create -f raw nbd+unix:///none?socket=$DIR/t 1M',
  'convert -f raw -O raw $DIR/source.raw nbd+unix:///none?socket=$DIR/t',
];

function run(program: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: limitMs(60_000) }, (error, stdout, stderr) => {
      const text = `${stdout}${stderr}`.replaceAll('qblock-img', 'qemu-img').replaceAll(dir, '$DIR');
      resolve(`status ${error === null ? 0 : error.code}\n${text}`);
    });
  });
}

function filled(text: string): string {
  return text
    .replaceAll('$DIR', dir)
    .replaceAll('$S', path.join(dir, 's'))
    .replaceAll('$T', `nbd+unix:///?socket=${path.join(dir, 't')}`)
    .replaceAll('$P', String(PORT));
}

const TOOLS = ['qemu-img', path.join(repositoryRoot, 'daemon/bin/qblock-img')] as const;

test('names', async (context) => {
  requirePeer(context, 'qemu-nbd', 'qemu-img');
  for (const name of NAMES) {
    const [theirs, ours] = await Promise.all(TOOLS.map((tool) => run(tool, ['info', filled(name)])));
    expect(ours, name).toBe(theirs);
  }
});

test('commands', async (context) => {
  requirePeer(context, 'qemu-nbd', 'qemu-img');
  const records: string[][] = [];
  for (const tool of TOOLS) {
    writeFileSync(path.join(dir, 'target.raw'), '');
    truncateSync(path.join(dir, 'target.raw'), 4 * MiB);
    const record: string[] = [];
    for (const command of COMMANDS) record.push(`${command}\n${await run(tool, filled(command).split(' '))}`);
    records.push(record);
  }
  expect(records[1]).toEqual(records[0]);
});
