/** Untrusted images: nothing that only an image names is opened, by the tools and by the daemon; all else works. */

import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Client, connect } from '../../client/node.ts';
import { repositoryRoot, startDaemon } from '../peers/daemons.ts';

let dir = '';
const tool = (name: string): string => path.join(repositoryRoot, 'daemon/bin', name);

function run(
  name: string,
  ...words: readonly string[]
): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(tool(name), words, { cwd: dir, encoding: 'utf8' });
}
const img = (...words: readonly string[]): string =>
  execFileSync(tool('qblock-img'), words, { cwd: dir, encoding: 'utf8' });

/** Images that name other files: [file, format, what it names]. */
const HOSTILE: readonly (readonly [string, string, RegExp])[] = [
  ['backed', 'qcow2', /names the backing file '.*secret'/],
  ['probing', 'qcow2', /names the backing file '.*secret'/],
  ['json', 'qcow2', /names the backing file 'json:/],
  ['data', 'qcow2', /names the data file '.*data.raw'/],
  ['flat.vmdk', 'vmdk', /names the extents\.0 '.*flat-flat\.vmdk'/],
  ['backed.qed', 'qed', /names the backing file '.*secret'/],
];

beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
  writeFileSync(path.join(dir, 'secret'), 'root:x:0:0'.padEnd(65536, '.'));
  img('create', '-q', '-f', 'qcow2', '-b', 'secret', '-F', 'raw', 'backed');
  img('create', '-q', '-f', 'qcow2', '-u', '-b', 'secret', '-F', 'qcow2', 'probing', '64k');
  img(
    'create',
    '-q',
    '-f',
    'qcow2',
    '-u',
    '-b',
    'json:{"driver":"file","filename":"secret"}',
    '-F',
    'raw',
    'json',
    '64k',
  );
  img('create', '-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'data', '64k');
  img('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', 'flat.vmdk', '64k');
  img('create', '-q', '-f', 'qed', '-b', 'secret', '-F', 'raw', 'backed.qed');
  img('create', '-q', '-f', 'qcow2', 'plain', '1M');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test.each(HOSTILE)('%s is refused by the tools', (file, format, names) => {
  for (const words of [
    ['qblock-img', 'convert', '--untrusted', '-f', format, '-O', 'raw', file, 'out'],
    ['qblock-img', 'map', '--untrusted', '-f', format, file],
    ['qblock-img', 'map', '--untrusted', '--image-opts', `driver=${format},file.filename=${file}`],
    ['qblock-io', '--untrusted', '-r', '-f', format, '-c', 'read 0 512', file],
    ['qblock-nbd', '--untrusted', '-r', '-f', format, '-k', path.join(dir, 's'), file],
  ]) {
    const { status, stderr, stdout } = run(words[0]!, ...words.slice(1));
    expect(stderr, words.join(' ')).toMatch(names);
    expect(status).toBe(1);
    expect(stdout).not.toContain('root');
  }
});

test('the format must be given; what names nothing works', () => {
  expect(run('qblock-img', 'convert', '--untrusted', '-O', 'raw', 'plain', 'out').stderr).toContain(
    'The format of an untrusted image must be given',
  );
  expect(
    run('qblock-img', 'convert', '--untrusted', '-f', 'qcow2', '-O', 'raw', 'plain', 'out'),
  ).toMatchObject({
    status: 0,
    stderr: '',
  });
  expect(readFileSync(path.join(dir, 'out')).length).toBe(1024 * 1024);
});

test('info shows what the image would have opened, and opens nothing', () => {
  const { stdout, status } = run('qblock-img', 'info', '--untrusted', '-f', 'qcow2', 'backed');
  expect(status).toBe(0);
  expect(stdout).toContain('backing file: secret');
  expect(stdout).toMatch(/^Files that it names:\n {4}backing file: \S*secret \(raw\)$/m);
  expect(
    run('qblock-img', 'info', '--untrusted', '--backing-chain', '-f', 'qcow2', 'backed').status,
  ).not.toBe(0);
});

test('info lists data files and extents, and none of them needs to be there', () => {
  const named = (file: string, format: string): string => {
    rmSync(path.join(dir, 'gone'), { recursive: true, force: true });
    mkdirSync(path.join(dir, 'gone'));
    cpSync(path.join(dir, file), path.join(dir, 'gone', file));
    const { stdout } = run('qblock-img', 'info', '--untrusted', '-f', format, `gone/${file}`);
    return stdout.slice(stdout.indexOf('Files that it names'));
  };
  expect(named('data', 'qcow2')).toMatch(/^Files that it names:\n {4}data file: \S+\n$/);
  expect(named('flat.vmdk', 'vmdk')).toMatch(/^Files that it names:\n {4}extents\.0: \S*flat-\S+\n$/);
  expect(named('plain', 'raw')).toBe('Files that it names: none\n');
  const { stdout } = run('qblock-img', 'info', '--untrusted', '--output=json', '-f', 'qcow2', 'data');
  expect(JSON.parse(stdout)['would-open']).toMatchObject([{ what: 'data file' }]);
});

test('blockdev-add: the image opens nothing, the user may', async () => {
  const daemon = await startDaemon('qblockd', { args: ['--qmp', 'unix:$DIR/c.sock'] });
  let client: Client | null = null;
  try {
    client = await connect(path.join(daemon.dir, 'c.sock'));
    const at = (name: string): string => path.join(dir, name);
    const add = (file: string, more: object = {}): Promise<unknown> =>
      client!.blockdevAdd({
        driver: 'qcow2',
        'node-name': 'n',
        untrusted: true,
        file: { driver: 'file', filename: at(file) },
        'read-only': true,
        ...more,
      });
    for (const file of ['backed', 'json', 'data']) await expect(add(file)).rejects.toThrow(/may not open/);
    await add('backed', { backing: null });
    await client.blockdevDel({ 'node-name': 'n' });
    await add('backed', { backing: { driver: 'raw', file: { driver: 'file', filename: at('secret') } } });
    await client.blockdevDel({ 'node-name': 'n' });
    // What an untrusted node defines inline is not trusted either.
    await expect(
      client.blockdevAdd({
        driver: 'throttle',
        'throttle-group': 'none',
        'node-name': 't',
        untrusted: true,
        file: { driver: 'qcow2', file: { driver: 'file', filename: at('backed') } },
      }),
    ).rejects.toThrow();
    await expect(
      client.blockdevAdd({
        driver: 'copy-on-read',
        'node-name': 't',
        untrusted: true,
        file: { driver: 'qcow2', file: { driver: 'file', filename: at('backed') } },
      }),
    ).rejects.toThrow(/may not open/);
  } finally {
    await client?.close();
    await daemon.stop();
  }
});
