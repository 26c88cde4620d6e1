/** The package as a user gets it: packed, installed without scripts into a folder of its own, started, and scripted. */

import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PACKAGE_VERSION } from '../../src/qmp/version.ts';
import { launchBrowser, openConsole } from '../console/browser.ts';
import { limitMs } from '../patience.ts';
import { makeScratchDir, reportOf, repositoryRoot } from '../peers/daemons.ts';
import { freePort } from '../peers/free-port.ts';
import { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';

let dir = '';
const PROGRAMS = ['qblock-img', 'qblock-io', 'qblock-nbd', 'qblock-shell', 'qblockd'];

/** Runs a program to its end, and returns its output; throws with what it said when it fails. */
function run(program: string, args: readonly string[], cwd = dir): string {
  const env = { ...process.env, npm_config_update_notifier: 'false' };
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, env, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}

interface Packed {
  readonly filename: string;
  readonly files: readonly { readonly path: string; readonly mode: number }[];
}

let packed: Packed;

beforeAll(() => {
  dir = makeScratchDir();
  // The lifecycle script prints nothing to standard output.
  const output = run('npm', ['pack', '--json', '--pack-destination', dir], repositoryRoot);
  [packed] = JSON.parse(output.slice(output.indexOf('['))) as [Packed];
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test('holds one bundle a program and nothing of the sources or tests', () => {
  const names = packed.files.map((file) => file.path);
  for (const program of PROGRAMS) {
    expect(
      names.filter((name) => name.startsWith(`dist/bundle/${program}-`) && name.endsWith('.cjs')),
    ).toHaveLength(1);
    expect(packed.files.find(({ path: name }) => name === `daemon/bin/${program}`)?.mode).toBe(0o755);
  }
  expect(names.filter((name) => /^(src|test|scripts|bench|node_modules)\/|\.map$/.test(name))).toEqual([]);
  expect(names.filter((name) => name.startsWith('dist/console/')).sort()).toEqual([
    'dist/console/console.csp',
    'dist/console/console.html',
  ]);
  const { scripts } = JSON.parse(readFileSync(path.join(repositoryRoot, 'package.json'), 'utf8'));
  expect(Object.keys(scripts).filter((name) => /^(pre|post)?install$|^prepare$/.test(name))).toEqual([]);
});

/** The daemon runs and answers with Node and nothing else in PATH, soon after it has been installed. */
async function startsAlone(prefix: string, installedMs: number): Promise<void> {
  const bin = (name: string): string => path.join(prefix, 'bin', name);
  const env = { PATH: path.dirname(process.execPath) };
  const modules = readdirSync(path.join(prefix, 'lib/node_modules/qblockd/node_modules'));
  expect(modules.filter((name) => ['typescript', 'vitest', 'rolldown', '@biomejs'].includes(name))).toEqual(
    [],
  );
  const daemon = spawn(bin('qblockd'), ['--qmp', 'unix:first', '--pidfile', 'first.pid'], {
    cwd: dir,
    env,
    stdio: 'ignore',
  });
  try {
    const isUp = (): boolean => existsSync(path.join(dir, 'first.pid'));
    await expect.poll(isUp, { timeout: limitMs(30_000), interval: 20 }).toBe(true);
    const words = ['-c', 'query-version', '-c', 'quit', 'first'];
    const { status, stdout } = spawnSync(bin('qblock-shell'), words, { cwd: dir, env, encoding: 'utf8' });
    const seconds = (Date.now() - installedMs) / 1000;
    process.stdout.write(`the daemon has answered ${seconds.toFixed(2)} s after the end of the install\n`);
    expect([status, stdout]).toEqual([0, expect.stringContaining(`"package":"qblockd ${PACKAGE_VERSION}"`)]);
    expect(seconds).toBeLessThan(limitMs(5000) / 1000);
  } finally {
    daemon.kill('SIGKILL');
  }
}

/** Installs the tarball into a folder of its own, once for all tests; returns the folder. */
function install(): string {
  const prefix = path.join(dir, 'prefix');
  if (existsSync(prefix)) return prefix;
  const tarball = path.join(dir, packed.filename);
  const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--omit=dev'];
  run('npm', ['install', '-g', '--prefix', prefix, '--ignore-scripts', ...quiet, tarball]);
  return prefix;
}

/** A project that has the installed package among its modules; returns its folder. */
function makeProject(prefix: string): string {
  const project = path.join(dir, 'project');
  if (existsSync(project)) return project;
  mkdirSync(path.join(project, 'node_modules'), { recursive: true });
  symlinkSync(path.join(prefix, 'lib/node_modules/qblockd'), path.join(project, 'node_modules/qblockd'));
  writeFileSync(path.join(project, 'package.json'), '{ "type": "module" }');
  return project;
}

test('installed, the programs run and the client finds the daemon', async (context) => {
  requirePeer(context, 'npm registry');
  const prefix = install();
  const installedMs = Date.now();
  await startsAlone(prefix, installedMs);
  expect(readdirSync(path.join(prefix, 'bin')).sort()).toEqual(PROGRAMS);
  const bin = (name: string): string => path.join(prefix, 'bin', name);
  for (const name of PROGRAMS) {
    expect(existsSync(path.join(prefix, `share/man/man1/${name}.1`))).toBe(true);
    for (const file of [`bash-completion/completions/${name}`, `zsh/vendor-completions/_${name}`])
      expect(existsSync(path.join(prefix, 'lib/node_modules/qblockd/dist/share', file))).toBe(true);
  }
  expect(run(bin('qblockd'), ['--version'])).toBe(
    `qblockd version ${PACKAGE_VERSION} (QMP of qemu-storage-daemon 7.2.22)\n`,
  );
  run(bin('qblock-img'), ['create', '-f', 'qcow2', 'disk.qcow2', '1M']);
  const daemon = spawn(
    bin('qblockd'),
    [
      ...['--blockdev', 'driver=qcow2,node-name=d,file.driver=file,file.filename=disk.qcow2'],
      ...['--qmp', 'unix:qmp', '--metrics', '127.0.0.1:0,token=t', '--pidfile', 'pid'],
    ],
    { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const report = reportOf(daemon);
  try {
    const isUp = (): boolean => existsSync(path.join(dir, 'pid'));
    await expect.poll(isUp, { timeout: limitMs(30_000) }).toBe(true);
    // A project that uses the client: its types are checked, and it runs.
    const project = makeProject(prefix);
    writeFileSync(
      path.join(project, 'use.mts'),
      `import { type Client, connect } from 'qblockd/client';
const client: Client = await connect('../qmp');
const nodes = await client.queryNamedBlockNodes();
const size: number = nodes[0]!.image['virtual-size'];
// @ts-expect-error there is no such member
nodes[0]!.nonsense;
process.stdout.write(String(size));
await client.quit();
client.close();
`,
    );
    const tsc = path.join(repositoryRoot, 'node_modules/typescript/bin/tsc');
    const types = ['--types', 'node', '--typeRoots', path.join(repositoryRoot, 'node_modules/@types')];
    const how = ['--module', 'nodenext', '--target', 'es2023', '--strict'];
    run(process.execPath, [tsc, ...how, ...types, 'use.mts'], project);
    expect(run(process.execPath, ['use.mjs'], project)).toBe('1048576');
    const { status, stdout } = await report;
    expect(status).toBe(0);
    expect(stdout).toMatch(/^Metrics: http:\/\/127\.0\.0\.1:\d+\/metrics\?token=t$/m);
  } finally {
    daemon.kill('SIGKILL');
  }
});

/** The first backup of node `disk`, as a project of a user's would make it. */
const BACKUP = `import { connect } from 'qblockd/client';
const client = await connect('unix:../first.sock');
await client.blockdevAdd({ driver: 'qcow2', 'node-name': 'full', file: { driver: 'file', filename: 'full.qcow2' } });
await client.blockdevBackup({ 'job-id': 'full', device: 'disk', target: 'full', sync: 'full', speed: 32 << 20 });
await client.job('full').finished();
client.close();
`;

test('the first day: installed, started by its unit, looked at in a browser, backed up, seen in the metrics', async (context) => {
  requirePeer(context, 'npm registry', 'systemd', 'chromium');
  const prefix = install();
  const bin = (name: string): string => path.join(prefix, 'bin', name);
  run(bin('qblock-img'), ['create', '-q', '-f', 'qcow2', 'day.qcow2', '64M']);
  run(bin('qblock-io'), ['-c', 'write -q -P 7 0 8M', 'day.qcow2']);
  run(bin('qblock-img'), ['create', '-q', '-f', 'qcow2', 'full.qcow2', '64M']);
  const config = path.join(dir, 'etc');
  mkdirSync(config);
  const [web, metrics] = [await freePort(), await freePort()];
  writeFileSync(
    path.join(config, 'disk.yaml'),
    `blockdev: {driver: qcow2, node-name: disk, file: {driver: file, filename: day.qcow2}}
qmp: ["ws:127.0.0.1:${web},token=t"]
metrics: ["127.0.0.1:${metrics},token=m"]
`,
  );
  const unit = readFileSync(
    path.join(prefix, 'lib/node_modules/qblockd/packaging/systemd/qblockd.service'),
    'utf8',
  );
  const line = /^ExecStart=(.*)$/m.exec(unit)?.[1] ?? '';
  const command = line.replace('/usr/bin/qblockd', bin('qblockd')).replace('/etc/qblockd', config).split(' ');
  const launcher = ['--fdname=qmp', '-l', path.join(dir, 'first.sock'), ...command];
  const manager = spawn('systemd-socket-activate', launcher, {
    cwd: dir,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const report = reportOf(manager);
  const browser = await launchBrowser();
  try {
    await expect
      .poll(() => existsSync(path.join(dir, 'first.sock')), { timeout: limitMs(30_000) })
      .toBe(true);
    // The unit's socket is there before the daemon: the first client starts it.
    run(bin('qblock-shell'), ['-c', 'query-version', path.join(dir, 'first.sock')]);
    const { page, complaints } = await openConsole(browser, `http://127.0.0.1:${web}/?token=t`);
    await page.getByRole('button', { name: 'node disk, qcow2 · 64 MiB' }).waitFor();
    const project = makeProject(prefix);
    writeFileSync(path.join(project, 'backup.mjs'), BACKUP);
    const backup = reportOf(spawn(process.execPath, ['backup.mjs'], { cwd: project }));
    const scrape = async (): Promise<string> =>
      (await fetch(`http://127.0.0.1:${metrics}/metrics`, { headers: { authorization: 'Bearer m' } })).text();
    const running = /^qblockd_job_info\{job_id="full",type="backup",status="running"\} 1$/m;
    await expect.poll(scrape, { timeout: limitMs(30_000), interval: 50 }).toMatch(running);
    expect(await backup).toMatchObject({ status: 0, stderr: '' });
    await page.locator('#events').getByText('BLOCK_JOB_COMPLETED').waitFor();
    expect(complaints).toEqual([]);
    run(bin('qblock-shell'), ['-c', 'quit', path.join(dir, 'first.sock')]);
    expect(await report).toMatchObject({ status: 0 });
  } finally {
    await browser.close();
    manager.kill('SIGKILL');
  }
  expect(run(bin('qblock-img'), ['compare', 'day.qcow2', 'full.qcow2'])).toBe('Images are identical.\n');
});

/** Installs a Debian package into an empty system of its own, and looks at what it has become. */
function installDeb(file: string, tree: string): void {
  if (process.getuid?.() !== 0) {
    run('dpkg-deb', ['-x', file, tree]);
    return;
  }
  for (const name of ['info', 'updates', 'triggers'])
    mkdirSync(path.join(tree, 'var/lib/dpkg', name), { recursive: true });
  writeFileSync(path.join(tree, 'var/lib/dpkg/status'), '');
  writeFileSync(path.join(tree, 'var/lib/dpkg/available'), '');
  // What units call from other packages.
  mkdirSync(path.join(tree, 'bin'));
  copyFileSync('/bin/kill', path.join(tree, 'bin/kill'));
  const dpkg = ['--root', tree, '--force-depends', '--force-script-chrootless', '--log=/dev/null'];
  run('dpkg', [...dpkg, '-i', file]);
  expect(run('dpkg', ['--root', tree, '-s', 'qblockd'])).toContain('Status: install ok installed');
  expect(run('dpkg', ['--root', tree, '--verify', 'qblockd'])).toBe('');
  expect(readFileSync(path.join(tree, 'etc/passwd'), 'utf8')).toMatch(
    /^qblockd:x:\d+:\d+:.*:\/var\/lib\/qblockd:/m,
  );
  const verified = spawnSync(
    'systemd-analyze',
    ['verify', '--man=no', '--recursive-errors=no', `--root=${tree}`, 'qblockd.service', 'qblockd.socket'],
    { encoding: 'utf8' },
  );
  expect([verified.status, verified.stderr]).toEqual([0, '']);
}

// In this file since packing writes into dist/, where two at once would meet.
test('npm run deb: the unit of the package starts the daemon of the package', async (context) => {
  requirePeer(context, 'npm registry', 'dpkg-deb', 'systemd');
  const made = spawnSync('npm', ['run', '-s', 'deb'], { cwd: repositoryRoot, encoding: 'utf8' });
  expect([made.status, made.stderr.replace(/^(npm (warn|notice).*|Building \.\.\.)\n/gim, '')]).toEqual([
    0,
    '',
  ]);
  const file = made.stdout.trim().split('\n').at(-1) ?? '';
  const tree = path.join(dir, 'deb');
  installDeb(file, tree);
  rmSync(file);
  for (const name of PROGRAMS) {
    run('gzip', ['-t', path.join(tree, `usr/share/man/man1/${name}.1.gz`)]);
    for (const where of [`bash-completion/completions/${name}`, `zsh/vendor-completions/_${name}`])
      expect(existsSync(path.join(tree, 'usr/share', where))).toBe(true);
  }
  const unit = readFileSync(path.join(tree, 'usr/lib/systemd/system/qblockd.service'), 'utf8');
  const [program = '', ...args] = /^ExecStart=(.*)$/m.exec(unit)?.[1]?.split(' ') ?? [];
  expect(args).toEqual(['--config', '/etc/qblockd', '--qmp', 'fd:qmp']);
  const socket = path.join(dir, 'deb.sock');
  const here = args.map((arg) => (arg.startsWith('/') ? path.join(tree, arg) : arg));
  const launcher = ['--fdname=qmp', '-l', socket, path.join(tree, program), ...here];
  const manager = spawn('systemd-socket-activate', launcher, { stdio: ['ignore', 'ignore', 'pipe'] });
  const report = reportOf(manager);
  try {
    await expect.poll(() => existsSync(socket), { timeout: limitMs(30_000) }).toBe(true);
    const client = await QmpClient.connect(socket);
    await client.execute('qmp_capabilities');
    expect(await client.execute('query-named-block-nodes')).toEqual([]);
    await client.execute('quit');
    expect(await report).toMatchObject({ status: 0 });
  } finally {
    manager.kill('SIGKILL');
  }
  if (process.getuid?.() !== 0) return;
  // Removed, it leaves nothing but what is the user's.
  writeFileSync(path.join(tree, 'etc/qblockd/mine.yaml'), 'blockdev: []\n');
  run('dpkg', ['--root', tree, '--force-script-chrootless', '--log=/dev/null', '-r', 'qblockd']);
  expect(existsSync(path.join(tree, 'etc/qblockd/mine.yaml'))).toBe(true);
  for (const name of ['usr/lib/qblockd', 'usr/bin/qblockd', 'usr/lib/systemd/system/qblockd.service'])
    expect(existsSync(path.join(tree, name))).toBe(false);
});
