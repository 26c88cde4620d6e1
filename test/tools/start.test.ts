/** The start of the tools: with the code cache of the build, and without what a run does not need. */

import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeScratchDir, repositoryRoot } from '../peers/daemons.ts';

const bin = path.join(repositoryRoot, 'daemon/bin');
const bundles = path.join(repositoryRoot, 'dist/bundle');
/** Each costs milliseconds. */
const COSTLY = [
  'crypto',
  'zlib',
  'tls',
  'http',
  'https',
  'child_process',
  'dgram',
  'internal/modules/esm/translators',
];

let dir = '';
beforeAll(() => {
  dir = makeScratchDir();
  writeFileSync(
    path.join(dir, 'list.cjs'),
    "process.on('exit', () => require('node:fs').writeFileSync('list', process.moduleLoadList.concat(Object.keys(require.cache)).join('\\n')));",
  );
  writeFileSync(
    path.join(dir, 'cache.cjs'),
    `const vm = require('node:vm');
    vm.Script = class extends vm.Script {
      constructor(...args) {
        super(...args);
        process.stderr.write(\`rejected: \${this.cachedDataRejected}\\n\`);
      }
    };`,
  );
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('nothing is loaded that a run does not need', () => {
  const runs = [
    ['qblock-img', 'create', '-f', 'qcow2', 'q', '1M'],
    ['qblock-img', 'info', 'q'],
    ['qblock-img', 'create', '-f', 'raw', 'r', '1M'],
    ['qblock-img', 'info', '-f', 'raw', 'r'],
    ['qblock-io', '-c', 'write 0 4k', '-c', 'read 0 4k', 'q'],
  ] as const;
  for (const [program, ...args] of runs) {
    test([program, ...args].join(' '), () => {
      const argv = ['-r', path.join(dir, 'list.cjs'), path.join(bin, program), ...args];
      const { status, stderr } = spawnSync(process.execPath, argv, { cwd: dir, encoding: 'utf8' });
      expect([status, stderr]).toEqual([0, '']);
      const loaded = readFileSync(path.join(dir, 'list'), 'utf8').split('\n');
      expect(loaded.filter((name) => COSTLY.some((costly) => name === `NativeModule ${costly}`))).toEqual([]);
      const packages = loaded.flatMap((name) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(name)?.[1] ?? []);
      expect(packages.filter((name) => !/koffi|koromix/.test(name))).toEqual([]);
    });
  }
});

test('what V8 is told stands in the launcher, and koffi is found without being looked for', () => {
  for (const program of ['qblock-img', 'qblock-io', 'qblock-shell']) {
    const env = { ...process.env, NODE_OPTIONS: `-r ${path.join(dir, 'list.cjs')}` };
    const { status, stderr } = spawnSync(path.join(bin, program), ['--version'], {
      cwd: dir,
      env,
      encoding: 'utf8',
    });
    expect([program, status, stderr]).toEqual([program, 0, '']);
    const loaded = readFileSync(path.join(dir, 'list'), 'utf8').split('\n');
    expect(loaded).toContain('NativeModule vm');
    expect(loaded.filter((name) => name === 'NativeModule v8' || /koffi\/.*\.c?js$/.test(name))).toEqual([]);
  }
});

test('the code cache fits the bundle', () => {
  for (const program of ['qblockd', 'qblock-img', 'qblock-io']) {
    const file = path.join(bundles, readFileSync(path.join(bundles, `${program}.name`), 'latin1'));
    const code = readFileSync(file, 'latin1');
    expect(code.match(/[\u0080-\uffff]/)).toBeNull();
    // The program's own launcher asks V8 with the program's own flags.
    const argv = ['-r', path.join(dir, 'cache.cjs'), path.join(bin, program), '--version'];
    const { stderr } = spawnSync(process.execPath, argv, { encoding: 'utf8' });
    expect([program, stderr]).toEqual([program, 'rejected: false\n']);
  }
});
