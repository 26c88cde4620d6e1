/** qblock-nbd beside qemu-nbd: refusals, lists, and what clients see of an image. */

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { repositoryRoot } from './daemons.ts';
import { requirePeer } from './requires.ts';

let dir = '';
const children: ChildProcess[] = [];
/** Called like the original, so that what it says of itself is the same. */
let ours = '';

beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
  ours = path.join(dir, 'qemu-nbd');
  symlinkSync(path.join(repositoryRoot, 'daemon/bin/qblock-nbd'), ours);
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

const img = (...words: readonly string[]): string =>
  execFileSync('qemu-img', words, { cwd: dir, encoding: 'utf8' });
const socket = (): string => path.join(dir, 's');

function io(uri: string, ...commands: readonly string[]): string {
  const words = commands.flatMap((command) => ['-c', command]);
  const { stdout, stderr } = spawnSync('qemu-io', ['-f', 'raw', ...words, uri], {
    cwd: dir,
    encoding: 'utf8',
  });
  return stdout + stderr;
}

/** Starts a server and waits until it listens. */
async function start(program: string, ...words: readonly string[]): Promise<ChildProcess> {
  const child = spawn(program, ['-k', socket(), ...words], { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  let errors = '';
  child.stderr.on('data', (text) => (errors += String(text)));
  while (!existsSync(socket())) {
    if (child.exitCode !== null) throw new Error(errors);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return child;
}

const exited = (child: ChildProcess): Promise<number | null> =>
  child.exitCode !== null
    ? Promise.resolve(child.exitCode)
    : new Promise((resolve) => child.once('exit', (status) => resolve(status)));

const URI = (): string => `nbd+unix:///?socket=${socket()}`;

test('what cannot be meant is refused in the same words', (context) => {
  requirePeer(context, 'qemu-nbd', 'qemu-img');
  img('create', '-q', '-f', 'qcow2', 'base', '1M');
  const cases = [
    '',
    '-p abc f',
    '-e -1 f',
    '-e x f',
    '-k rel f',
    '-o abc f',
    '-o 5M base',
    '-o 2000000 base',
    '-x x -L',
    '-A -L',
    '-L f',
    '--cache=foo f',
    '-n --cache=none base',
    '--aio=foo f',
    '--discard=foo f',
    '--detect-zeroes=foo f',
    '--detect-zeroes=unmap --discard=ignore base',
    'f g',
    'nonex',
    '-B nope base',
    '-l nosnap base',
    '-f foo base',
    '--tls-creds x base',
    '--tls-authz=x base',
    '--image-opts -f raw base',
    '--nope',
    '-d',
    '-k /nonexistent/dir/s base',
    '--fork -v nonexist',
    '--pid-file=/nonexistent/x -r base',
    '-L -k /nonexistent/s',
  ];
  for (const words of cases) {
    const run = (program: string): unknown => {
      const { status, stdout, stderr } = spawnSync(program, words.split(' ').filter(Boolean), {
        cwd: dir,
        encoding: 'utf8',
      });
      return { words, status, stdout, stderr };
    };
    expect(run(ours)).toEqual(run('qemu-nbd'));
  }
});

test('each lists what the other serves, and the same', async (context) => {
  requirePeer(context, 'qemu-nbd', 'qemu-img');
  img('create', '-q', '-f', 'qcow2', 'a', '1M');
  img('bitmap', '--add', 'a', 'b0');
  for (const server of [ours, 'qemu-nbd']) {
    const child = await start(
      server,
      '-t',
      '-f',
      'qcow2',
      '-x',
      'name',
      '-D',
      'some text',
      '-A',
      '-B',
      'b0',
      'a',
    );
    const lists = [ours, 'qemu-nbd'].map((client) =>
      execFileSync(client, ['-L', '-k', socket()], { encoding: 'utf8' }),
    );
    expect(lists[0]).toBe(lists[1]);
    expect(lists[0]).toContain('qemu:dirty-bitmap:b0');
    child.kill('SIGTERM');
    expect(await exited(child)).toBe(0);
    rmSync(socket(), { force: true });
  }
});

test('it ends with its last client; -t goes on, and ends with a signal', async (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  img('create', '-q', '-f', 'qcow2', 'a', '1M');
  const once = await start(ours, '-f', 'qcow2', 'a');
  expect(io(URI(), 'write -q -P 5 0 64k')).toBe('');
  expect(await exited(once)).toBe(0);
  expect(existsSync(socket())).toBe(false);
  const always = await start(ours, '-t', '-f', 'qcow2', 'a');
  for (let round = 0; round < 3; round++) expect(io(URI(), 'read -q -P 5 0 64k')).toBe('');
  expect(always.exitCode).toBeNull();
  always.kill('SIGTERM');
  expect(await exited(always)).toBe(0);
  expect(img('check', 'a')).toContain('No errors');
});

test('parts of an image: an offset, a snapshot, a temporary image, read-only', async (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  img('create', '-q', '-f', 'qcow2', 'a', '1M');
  const fill = (pattern: number): string =>
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -q -P ${pattern} 0 1M`, 'a'], {
      cwd: dir,
      encoding: 'utf8',
    });
  fill(1);
  img('snapshot', '-c', 'then', 'a');
  fill(2);
  const cases: readonly (readonly [readonly string[], readonly string[], string])[] = [
    [['-o', '65536'], ['read -q -P 2 0 960k', 'write -q -P 3 0 512'], ''],
    [['-l', 'then'], ['read -q -P 1 0 1M'], ''],
    [['-s'], ['write -q -P 9 0 64k', 'read -q -P 9 0 64k', 'read -q -P 3 64k 512'], ''],
    [['-r'], ['read -q -P 2 0 64k'], ''],
    [
      ['--discard=unmap', '--detect-zeroes=unmap', '--aio=threads', '-n'],
      ['write -q -P 0 128k 64k', 'read -q -P 0 128k 64k'],
      '',
    ],
  ];
  for (const [words, commands, expected] of cases) {
    const child = await start(ours, '-f', 'qcow2', ...words, 'a');
    const readOnly = words.includes('-r') || words.includes('-l');
    const { stdout, stderr } = spawnSync(
      'qemu-io',
      [...(readOnly ? ['-r'] : []), '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), URI()],
      { encoding: 'utf8' },
    );
    expect(stdout + stderr, words.join(' ')).toBe(expected);
    expect(await exited(child)).toBe(0);
  }
});

test('discards reach the file with --discard=unmap only, as in the original', async (context) => {
  requirePeer(context, 'qemu-io', 'qemu-nbd');
  for (const program of ['qemu-nbd', ours]) {
    for (const [words, holes] of [
      [[], false],
      [['--discard=unmap'], true],
    ] as const) {
      writeFileSync(path.join(dir, 'full'), Buffer.alloc(1 << 20, 7));
      const child = await start(program, '-f', 'raw', '-t', ...words, 'full');
      io(URI(), 'discard 0 1M');
      expect([program, words, readFileSync(path.join(dir, 'full'))[0]]).toEqual([
        program,
        words,
        holes ? 0 : 7,
      ]);
      child.kill('SIGKILL');
      await exited(child);
      rmSync(socket(), { force: true });
    }
  }
});

test('--fork ends when clients are served; the pid file goes with the server', async (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  img('create', '-q', '-f', 'raw', 'a', '1M');
  const pidFile = path.join(dir, 'pid');
  const words = ['--fork', '-f', 'raw', '-k', socket(), '--pid-file', pidFile, 'a'];
  expect(spawnSync(ours, words, { cwd: dir, stdio: 'ignore' }).status).toBe(0);
  expect(Number(readFileSync(pidFile, 'utf8'))).toBeGreaterThan(1);
  expect(io(URI(), 'write -q -P 5 0 64k')).toBe('');
  while (existsSync(pidFile)) await new Promise((resolve) => setTimeout(resolve, 10));
});

test('a listening socket that somebody else has made', async (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  img('create', '-q', '-f', 'raw', 'a', '1M');
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(socket(), resolve));
  // The process id must be the server's own, so a shell sets it and becomes the server.
  const { fd } = (listener as unknown as { _handle: { fd: number } })._handle;
  const script = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"';
  const child = spawn('sh', ['-c', script, ours, '-f', 'raw', 'a'], {
    cwd: dir,
    stdio: [fd, 'inherit', 'inherit'],
  });
  children.push(child);
  try {
    expect(io(URI(), 'write -q -P 5 0 64k', 'read -q -P 5 0 64k')).toBe('');
    expect(await exited(child)).toBe(0);
  } finally {
    listener.close();
  }
});
