/** Configuration files, the saved configuration, and what becomes of both when they are damaged or used twice. */

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Client, connect } from '../../client/node.ts';
import {
  daemonProgram,
  makeScratchDir,
  type RunningDaemon,
  repositoryRoot,
  startDaemon,
} from '../peers/daemons.ts';

const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir = '';
const cleanUp: (() => unknown)[] = [];

beforeEach(() => {
  dir = makeScratchDir();
});
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
  rmSync(dir, { recursive: true, force: true });
});

function write(name: string, text: string): string {
  const file = path.join(dir, name);
  writeFileSync(file, text);
  return file;
}

async function start(...args: readonly string[]): Promise<{ running: RunningDaemon; client: Client }> {
  // Left behind by a daemon that was killed.
  for (const name of readdirSync(dir)) if (/\.sock$|^pid$/.test(name)) rmSync(path.join(dir, name));
  const running = await startDaemon('qblockd', { dir, args: ['--qmp', 'unix:$DIR/client.sock', ...args] });
  cleanUp.push(() => running.stop());
  const client = await connect(path.join(dir, 'client.sock'));
  cleanUp.push(() => client.close());
  return { running, client };
}

/** What the daemon says when the configuration cannot be carried out; paths in it are relative to the folder. */
function refusal(...args: readonly string[]): string {
  const { stderr, status } = spawnSync(daemonProgram('qblockd'), args, { cwd: dir, encoding: 'utf8' });
  expect(status).toBe(1);
  return stderr
    .trim()
    .split('\n')
    .at(-1)!
    .replace(/^qblockd: --\S+ \S+: /, '');
}

/** Nodes and edges without what differs from run to run. */
async function graphOf(client: Client): Promise<unknown> {
  const { nodes, edges } = await client.xDebugQueryBlockGraph();
  const names = new Map(
    nodes.map((node) => [node.id, `${node.type}:${node.name.replace(/^#block.*/, '#')}`]),
  );
  return edges
    .map((edge) => `${names.get(edge.parent)} -${edge.name}-> ${names.get(edge.child)} ${edge.perm.join()}`)
    .sort();
}

describe('a configuration file', () => {
  test('has the objects of the command line, nodes in any order', async () => {
    write('disk.raw', '\0'.repeat(65536));
    const config = write(
      'q.yaml',
      [
        'export: {type: nbd, id: e0, node-name: disk, writable: true}',
        `nbd-server: {addr: {type: unix, path: ${dir}/nbd.sock}}`,
        'blockdev:',
        '  - {driver: throttle, node-name: disk, throttle-group: tg0, file: fmt}',
        '  - driver: raw',
        '    node-name: fmt',
        `    file: {driver: file, filename: ${dir}/disk.raw}`,
        '  - null-co,node-name=other,size=1048576',
        'object:',
        '  - {qom-type: throttle-group, id: tg0, limits: {iops-total: 1000}}',
      ].join('\n'),
    );
    const { client } = await start('--config', config);
    const names = (await client.queryNamedBlockNodes({ flat: true })).map((node) => node['node-name']);
    expect(names.filter((name) => name?.startsWith('#') === false).sort()).toEqual(['disk', 'fmt', 'other']);
    expect(await client.queryBlockExports()).toMatchObject([{ id: 'e0', 'node-name': 'disk' }]);
  });

  test('a folder is read in the order of its names; other files are left alone', async () => {
    mkdirSync(path.join(dir, 'conf.d'));
    write('conf.d/20-raw.json', '{"blockdev": [{"driver": "raw", "node-name": "r", "file": "n"}]}');
    write('conf.d/10-null.yml', 'blockdev: {driver: null-co, node-name: n, size: 1048576}');
    write('conf.d/README', 'not: [yaml');
    write('conf.d/.30-hidden.yaml', 'nonsense');
    const { client } = await start('--config', path.join(dir, 'conf.d'));
    expect((await client.queryNamedBlockNodes({})).map((node) => node['node-name']).sort()).toEqual([
      'n',
      'r',
    ]);
  });

  test.each([
    ['not: [closed', /^c.yaml:1:13: /],
    ['blokdev: []', /^c.yaml:1:1: Unknown section 'blokdev', expected one of: object, chardev, /],
    ['- a', /^c.yaml:1:1: A configuration is a map of sections/],
    ['qmp: 7', /^c.yaml:1:6: An entry of 'qmp' is a map, or a text/],
    ['export: [[]]', /^c.yaml:1:10: An entry of 'export' is a map, or a text/],
    [
      'blockdev: {driver: nothing, node-name: n}',
      /^c.yaml:1:12: Parameter 'driver' does not accept value 'nothing'/,
    ],
    [
      'blockdev:\n  - {driver: null-co, node-name: n,\n     size: "large"}',
      /^c.yaml:3:6: Invalid parameter type for 'size', expected: integer/,
    ],
    ['blockdev:\n  - driver: null-co\n    siez: 1', /^c.yaml:3:5: Parameter 'siez' is unexpected/],
    [
      'blockdev:\n  - driver: raw\n    file: {driver: file}',
      /^c.yaml:3:5: Parameter 'file.filename' is missing/,
    ],
    ['a: 1\na: 2', /^c.yaml:2:1: Map keys must be unique/],
    [
      'blockdev:\n - {driver: raw, node-name: a, file: b}\n - {driver: raw, node-name: b, file: a}',
      /^c.yaml:2:4: Block nodes refer to each other in a circle: a -> b -> a/,
    ],
    ['blockdev: &x {driver: raw, node-name: a, file: *x}', /^c.yaml:1:\d+: It holds itself/],
    [
      `x0: &x0 [a]\n${[1, 2, 3, 4, 5, 6, 7, 8].map((n) => `x${n}: &x${n} [${Array(10).fill(`*x${n - 1}`)}]`).join('\n')}`,
      /^c.yaml:1:1: Unknown section 'x0'/,
    ],
    [
      `blockdev:\n - &y0 {a: b}\n${[1, 2, 3, 4, 5, 6].map((n) => ` - &y${n} {${Array.from({ length: 10 }, (_v, i) => `k${i}: *y${n - 1}`)}}`).join('\n')}`,
      /^c.yaml:\d+:\d+: Excessive alias count/,
    ],
  ])('%j is refused, with its place', (text, expected) => {
    write('c.yaml', text);
    expect(refusal('--config', 'c.yaml')).toMatch(expected);
  });

  test('what is no configuration is refused', () => {
    expect(refusal('--config', 'none.yaml')).toBe(
      "Could not read configuration 'none.yaml': No such file or directory",
    );
    writeFileSync(path.join(dir, 'bin.yaml'), Buffer.from([0xff, 0xfe, 0x00]));
    expect(refusal('--config', 'bin.yaml')).toBe("Configuration 'bin.yaml' is not UTF-8");
    expect(refusal('--config', '/dev/null')).toBe("Configuration '/dev/null' is no regular file");
  });

  test('a secret in the clear is warned of; in a file it is not', async () => {
    write('pw', 'hunter2');
    const open = write('open.yaml', 'object: {qom-type: secret, id: s, data: hunter2}');
    const closed = write('closed.yaml', `object: {qom-type: secret, id: t, file: ${dir}/pw}`);
    const { running } = await start('--config', open, '--config', closed);
    const { stderr } = await running.stop();
    expect(stderr).toMatch(/warning: .*open.yaml:1:\d+: secret 's' stands here in the clear/);
    expect(stderr).not.toContain('closed.yaml');
  });
});

describe('the saved configuration', () => {
  test('brings the graph back as it was, after changes and kill -9', async () => {
    for (const name of ['base', 'top', 'new', 'overlay']) {
      execFileSync(img, ['create', '-q', '-f', 'qcow2', path.join(dir, name), '4M']);
    }
    execFileSync(img, ['create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', path.join(dir, 'top')]);
    const state = path.join(dir, 'state.json');
    const first = await start('--save', state);
    const { client } = first;
    const at = (name: string): string => path.join(dir, name);
    await client.objectAdd({ 'qom-type': 'throttle-group', id: 'tg0', limits: { 'iops-total': 100_000 } });
    await client.blockdevAdd({
      driver: 'qcow2',
      'node-name': 'top',
      file: { driver: 'file', filename: at('top') },
    });
    await client.blockdevAdd({
      driver: 'throttle',
      'node-name': 'thr',
      'throttle-group': 'tg0',
      file: 'top',
    });
    await client.nbdServerStart({ addr: { type: 'unix', data: { path: at('nbd') } } });
    await client.blockExportAdd({ type: 'nbd', id: 'e', 'node-name': 'thr', name: 'disk', writable: true });
    await client.blockDirtyBitmapAdd({ node: 'top', name: 'kept', persistent: true });
    await client.blockDirtyBitmapAdd({ node: 'top', name: 'lost' });
    // The graph changes: an overlay, and a mirror that takes the place of its source.
    await client.blockdevAdd({
      driver: 'qcow2',
      'node-name': 'overlay',
      backing: null,
      file: { driver: 'file', 'node-name': 'overlay-file', filename: at('overlay') },
    });
    await client.blockdevSnapshot({ node: 'top', overlay: 'overlay' });
    await client.qomSet({ path: '/objects/tg0', property: 'limits', value: { 'iops-total': 50_000 } });
    await client.blockdevAdd({
      driver: 'raw',
      'node-name': 'null',
      file: { driver: 'null-co', size: 4194304 },
    });
    const saved = await client.xConfigSave({});
    expect(saved.omitted).toEqual(["bitmap 'lost' of node 'top': it is not persistent"]);
    const graph = await graphOf(client);
    first.running.process.kill('SIGKILL');
    await first.running.exited;
    rmSync(at('nbd'), { force: true });

    const second = await start('--restore', state, '--save', state);
    expect(await graphOf(second.client)).toEqual(graph);
    const limits = await second.client.qomGet({ path: '/objects/tg0', property: 'limits' });
    expect(limits).toMatchObject({ 'iops-total': 50_000 });
    expect((await second.client.xConfigSave({})).config).toEqual(saved.config);
    // Ended by quit, which takes everything apart: that is not what is saved.
    await second.client.quit();
    await second.running.exited;
    expect(JSON.parse(readFileSync(state, 'utf8'))).toEqual(saved.config);
  });

  test('changes are written without being asked for', async () => {
    const state = path.join(dir, 'state.json');
    const { client } = await start('--save', state);
    await client.blockdevAdd({ driver: 'null-co', 'node-name': 'n', size: 1048576 });
    while (!existsSync(state) || !readFileSync(state, 'utf8').includes('null-co')) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });

  test('what is answered is kept, and the same command line starts again', async () => {
    const state = path.join(dir, 'state.json');
    const config = write('c.yaml', 'blockdev: {driver: null-co, node-name: first, size: 1048576}');
    const words = ['--config', config, '--restore', state, '--save', state];
    const before = await start(...words);
    for (let i = 0; i < 20; i++) {
      await before.client.blockdevAdd({ driver: 'null-co', 'node-name': `n${i}`, size: 1048576 });
    }
    before.running.process.kill('SIGKILL');
    await before.running.exited;
    const { client } = await start(...words);
    expect((await client.queryNamedBlockNodes({ flat: true })).length).toBe(21);
  });

  test('no two daemons restore the same state', async () => {
    const state = path.join(dir, 'state.json');
    const { running } = await start('--restore', state, '--save', state);
    const pattern = new RegExp(
      `The state 'state.json' is in use by another daemon \\(process ${running.process.pid}\\)`,
    );
    expect(refusal('--restore', 'state.json')).toMatch(pattern);
    expect(refusal('--save', 'state.json')).toMatch(pattern);
  });

  test('secrets in the clear and running jobs are left out, and said so', async () => {
    const { client } = await start();
    await client.objectAdd({ 'qom-type': 'secret', id: 's', data: 'hunter2' });
    await client.blockdevAdd({ driver: 'null-co', 'node-name': 'a', size: 1048576 });
    await client.blockdevAdd({ driver: 'null-co', 'node-name': 'b', size: 1048576 });
    await client.blockdevMirror({ 'job-id': 'j', device: 'a', target: 'b', sync: 'full' });
    await client.job('j').ready();
    const { config, omitted } = await client.xConfigSave({});
    expect(omitted).toEqual([
      "secret 's': its data would stand in the file in the clear; make it with 'file'",
      "job 'j': jobs do not outlive the daemon",
    ]);
    expect(JSON.stringify(config)).not.toContain('hunter2');
    expect(JSON.stringify(config)).not.toContain('mirror');
  });

  test('a file that cannot be written is an error, and the old one stays', async () => {
    const { client } = await start();
    await expect(client.xConfigSave({ filename: path.join(dir, 'none/x') })).rejects.toThrow(
      /Could not write '.*none\/x': No such file or directory/,
    );
  });
});
