/** What scripts ask of the tools: progress and errors as JSON, progress on a signal, exit statuses, output that gets lost. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { repositoryRoot } from '../peers/daemons.ts';

const bin = (name: string): string => path.join(repositoryRoot, 'daemon/bin', `qblock-${name}`);
let dir = '';

function run(
  tool: string,
  ...words: readonly string[]
): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(bin(tool), words, { cwd: dir, encoding: 'utf8' });
}
const shell = (line: string): { status: number | null; stdout: string; stderr: string } =>
  spawnSync('bash', ['-c', line], { cwd: dir, encoding: 'utf8', env: { ...process.env, IMG: bin('img') } });

beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-scripts-'));
  run('img', 'create', '-q', '-f', 'qcow2', 'base', '32M');
  run('io', '-c', 'write 0 16M', 'base');
  run('img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top');
  run('io', '-c', 'write -P 3 4M 8M', 'top');
  run('img', 'create', '-q', '-f', 'qcow2', 'many', '64M');
  run('io', ...Array.from({ length: 300 }, (_, at) => ['-c', `write -q ${at * 131072} 64k`]).flat(), 'many');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

interface Line {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
  readonly percent: number;
  readonly 'bytes-per-second': number;
}

test.each([
  ['copy', 16 << 20, ['convert', '-p=json', '-O', 'qcow2', 'base', 'out']],
  ['copy', 16 << 20, ['convert', '--progress=json', '-O', 'raw', 'base', 'out.raw']],
  ['compare', 32 << 20, ['compare', '-p=json', 'base', 'base']],
  ['rebase', 32 << 20, ['rebase', '-p=json', '-b', 'many', '-F', 'qcow2', 'top']],
  ['rebase', 32 << 20, ['rebase', '-p=json', '-b', 'base', '-F', 'qcow2', 'top']],
  ['commit', 32 << 20, ['commit', '-p=json', '-d', 'top']],
  ['amend', 32 << 20, ['amend', '-p=json', '-o', 'compat=0.10', 'base']],
])('progress as JSON: %s', (phase, total, words) => {
  const { stdout, status } = run('img', ...words);
  expect(status).toBe(0);
  const lines = stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Line);
  const last = lines.at(-1)!;
  expect(last).toMatchObject({ phase, total, done: total, percent: 100 });
  expect(last['bytes-per-second']).toBeGreaterThanOrEqual(0);
  for (const [index, line] of lines.slice(1).entries()) {
    expect(Object.keys(line)).toEqual(['phase', 'done', 'total', 'percent', 'bytes-per-second']);
    expect(line.percent).toBeGreaterThanOrEqual(lines[index]!.percent);
  }
  expect(lines.filter(({ percent }) => percent === 100).length).toBe(1);
});

test('-q silences it, and where the image goes to standard output it goes beside', () => {
  expect(run('img', 'convert', '-q', '-p=json', '-O', 'qcow2', 'many', 'out').stdout).toBe('');
  const { stdout, stderr, status } = shell(
    '$IMG convert -p=json -O raw many - | sha256sum; $IMG convert -O raw many x; sha256sum < x',
  );
  expect(status).toBe(0);
  const [one, two] = stdout.trim().split('\n');
  expect(one).toBe(two);
  expect(JSON.parse(stderr.trim().split('\n').at(-1)!)).toMatchObject({ phase: 'copy', percent: 100 });
});

/**
 * Waits until the program has given itself its name: from then on signals are its own. The script has that name too while
 * env looks for node, which is told from what is on the command line.
 */
async function named(child: ChildProcess): Promise<void> {
  const read = (file: string): string => readFileSync(`/proc/${child.pid}/${file}`, 'utf8');
  while (!(read('comm').startsWith('qblock') && /^[^\0]*node\0/.test(read('cmdline'))))
    await new Promise((resolve) => setTimeout(resolve, 5));
}

test('SIGUSR1 prints how far it is, with -p and without; commands without progress go on', async () => {
  for (const [words, expected] of [
    [['convert', '-r', '8M', '-O', 'qcow2'], /^ {4}\(\d+\.\d\d\/100%\)\n/],
    [['convert', '-p', '-r', '8M', '-O', 'qcow2'], /^ {4}\(\d+\.\d\d\/100%\)\n/],
    [['convert', '-p=json', '-r', '8M', '-O', 'qcow2'], /^\{"phase":"/],
  ] as const) {
    const child = spawn(bin('img'), [...words, 'base', 'slow'], {
      cwd: dir,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let text = '';
    child.stderr.on('data', (more) => (text += String(more)));
    const exited = once(child, 'exit');
    await named(child);
    const timer = setInterval(() => (text === '' ? child.kill('SIGUSR1') : child.kill('SIGKILL')), 300);
    await exited;
    clearInterval(timer);
    expect(text).toMatch(expected);
  }
  const child = spawn(bin('io'), ['-c', 'sleep 700', '-c', 'length', 'base'], {
    cwd: dir,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (more) => (text += String(more)));
  const exited = once(child, 'exit');
  await named(child);
  child.kill('SIGUSR1');
  expect(await exited).toEqual([0, null]);
  expect(text).toBe('32 MiB\n');
});

test('errors, warnings and notes as JSON, a line each', () => {
  const errors = (tool: string, ...words: string[]): unknown[] => {
    const { stderr, status } = run(tool, ...words);
    expect(status).not.toBe(0);
    return stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as unknown);
  };
  const help = (name: string): string => `Try 'qblock-${name} --help' for more information`;
  expect(errors('img', 'info', '--error-format', 'json', 'nope')).toEqual([
    {
      error: {
        desc: "Could not open 'nope': Could not open 'nope': No such file or directory",
        errno: 'ENOENT',
      },
    },
  ]);
  expect(errors('img', '--error-format=json', 'nope')).toEqual([
    { error: { desc: 'Command not found: nope', hint: help('img') } },
  ]);
  // What is wrong in front of the option is told as it asks.
  expect(errors('img', 'info', '--nope', '--error-format=json', 'base')).toEqual([
    { error: { desc: "unrecognized option '--nope'", hint: help('img') } },
  ]);
  expect(errors('img', 'resize', '--error-format=json', '-f', 'qcow2', 'base', '1M')).toMatchObject([
    { error: { desc: 'Use the --shrink option to perform a shrink operation.' } },
    { warning: expect.stringContaining('Shrinking an image will delete all data') },
  ]);
  expect(errors('io', '--error-format=json', '-f', 'raw', '-c', 'read 100M 512', 'base')).toEqual([
    { error: { desc: 'read failed: Input/output error' } },
  ]);
  expect(errors('nbd', '--error-format', 'json', '-f', 'raw', 'nope')).toMatchObject([
    { error: { errno: 'ENOENT' } },
  ]);
  expect(errors('shell', '--error-format=json', '/no/such/socket')).toMatchObject([{ error: {} }]);
  expect(run('img', 'info', '--error-format=xml', 'base')).toMatchObject({
    status: 1,
    stderr: 'qblock-img: --error-format must be used with human or json as argument.\n',
  });
});

test('output that cannot be written is an error; nobody listening is none', () => {
  expect(shell('$IMG map --output=json many > /dev/full')).toMatchObject({
    status: 1,
    stderr: 'qblock-img: standard output cannot be written: No space left on device\n',
  });
  expect(shell('$IMG map --output=json many | head -n 1; exit $PIPESTATUS')).toMatchObject({
    status: 0,
    stderr: '',
  });
  expect(shell('$IMG info base >&-')).toMatchObject({ status: 0, stderr: '' });
  expect(shell('$IMG info nope 2>&-').status).toBe(1);
  expect(shell('$IMG info nope 2> /dev/full').status).toBe(1);
});

test('map --compressed tells what is compressed; without it the output is that of 7.2', () => {
  run('img', 'create', '-q', '-f', 'qcow2', 'packed', '1M');
  run('io', '-c', 'write -c 0 64k', '-c', 'write 64k 64k', 'packed');
  const map = (...words: string[]): Record<string, unknown>[] =>
    JSON.parse(run('img', 'map', '--output=json', ...words, 'packed').stdout) as Record<string, unknown>[];
  expect(map('--compressed').map(({ compressed }) => compressed)).toEqual([true, false, false]);
  expect(map().every((entry) => !('compressed' in entry))).toBe(true);
});

test('names of all kinds', () => {
  const names = ['-dash', 'a b', 'new\nline', 'quo\'te"', 'ünï', 'a:b', '$(x)', '#1', 'x,y'];
  for (const name of names) {
    const at = `./${name}`;
    expect(run('img', 'create', '-q', '-f', 'qcow2', at, '1M')).toMatchObject({
      status: 0,
      stdout: '',
      stderr: '',
    });
    const { stdout, status } = run('img', 'info', '--output=json', at);
    expect([status, (JSON.parse(stdout) as { filename: string }).filename]).toEqual([0, at]);
    expect(run('img', 'compare', at, '--', at).status).toBe(0);
  }
  const { status, stdout } = shell(
    'printf \'x\\377y\' > n; $IMG create -q -f raw "$(cat n)" 64k && $IMG info "$(cat n)" | head -1 | od -c | head -2',
  );
  expect(status).toBe(0);
  expect(stdout).toContain('377');
});
