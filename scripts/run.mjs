// What `npm start`, `npm test` and `npm run bench` do: install what is missing, build what has changed, then go.
// Usage: node scripts/run.mjs start|test|quick|bench [ARGS]      Needs Node and npm only; signals and the exit status pass through.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { BuildError, build } from './build.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const oldestNode = [20, 19];

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < oldestNode[0] || (major === oldestNode[0] && minor < oldestNode[1])) {
    fail(`Node ${oldestNode.join('.')} or newer is needed; this is ${process.versions.node}`);
  }
}

const say = (line) => process.stderr.write(`${line}\n`);

/** A registry that does not answer is given up soon: the user has been waiting for the daemon. */
const npmOptions = [
  ...['--include=dev', '--no-audit', '--no-fund', '--loglevel=error', '--prefer-offline'],
  ...['--fetch-retries=1', '--fetch-retry-mintimeout=1000', '--fetch-timeout=15000'],
];
const NO_NETWORK =
  /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ENOTCACHED|EIDLETIMEOUT)\b/;

/** Runs npm; returns what it complained of, or null when it succeeded. What it prints goes to stderr. */
function npm(args) {
  const script = process.env.npm_execpath ?? '';
  const [program, ...before] = script.endsWith('npm-cli.js') ? [process.execPath, script] : ['npm'];
  const { status, stderr, error } = spawnSync(program, [...before, ...args, ...npmOptions], {
    cwd: root,
    stdio: ['ignore', 2, 'pipe'],
    encoding: 'utf8',
  });
  if (status === 0) return null;
  return stderr || error?.message || `npm ended with status ${status}`;
}

/** Packages that a lock file asks for, by place: those for other machines may be missing. */
function lockedVersions(file) {
  try {
    const { packages } = JSON.parse(readFileSync(path.join(root, file), 'utf8'));
    return new Map(
      Object.entries(packages)
        .filter(([place, { optional }]) => place !== '' && optional !== true)
        .map(([place, { version }]) => [place, version]),
    );
  } catch {
    return null;
  }
}

/** Whether node_modules holds what the lock file asks for. Times say nothing in a tree that was copied. */
function isInstalled() {
  const installed = lockedVersions('node_modules/.package-lock.json');
  const wanted = lockedVersions('package-lock.json');
  return (
    installed !== null && [...(wanted ?? [])].every(([place, version]) => installed.get(place) === version)
  );
}

/** Installs the packages when some are missing. */
function install() {
  if (isInstalled()) return;
  say('Installing packages from the npm registry (once, about half a minute) ...');
  let complaint = npm(['ci']);
  // `npm ci` refuses when the registry's idea of optional packages differs from the lock file's.
  if (complaint !== null && !NO_NETWORK.test(complaint)) complaint = npm(['install', '--no-save']);
  if (complaint === null) return;
  say(complaint.trimEnd());
  fail(
    NO_NETWORK.test(complaint)
      ? 'The packages could not be installed: the registry cannot be reached. Try again with a network, or copy node_modules/ from a tree that has it.'
      : 'The packages could not be installed',
  );
}

function prepare() {
  checkNode();
  install();
  const startMs = Date.now();
  try {
    const built = build({ begin: () => say('Building (up to half a minute) ...') });
    if (built) say(`Built in ${((Date.now() - startMs) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    fail(error.message);
  }
}

/** Runs a program in the foreground as if it had replaced this one. */
function become(program, args) {
  const child = spawn(program, args, { cwd: root, stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']) {
    // A terminal sends its SIGINT to the whole process group: the child has it already.
    process.on(signal, () => (signal === 'SIGINT' && process.stdin.isTTY) || child.kill(signal));
  }
  if (process.env.npm_lifecycle_event !== undefined) endWithParent(process.ppid, child);
  child.on('error', (error) => fail(`Cannot run ${program}: ${error.message}`));
  child.on('exit', (status, signal) => {
    if (signal === null) process.exit(status);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
    setTimeout(() => process.exit(128 + constants.signals[signal]), 100);
  });
}

/** A signal sent to npm ends npm and its shell without reaching this process: notice that, and pass it on. */
function endWithParent(parentPid, child) {
  const timer = setInterval(() => {
    if (process.ppid === parentPid) return;
    clearInterval(timer);
    child.kill('SIGTERM');
  }, 200);
}

// ---- npm test --------------------------------------------------------------------------------------------------

const binary = (name) => path.join(root, 'node_modules/.bin', name);

function testSteps() {
  return [
    ['types', binary('tsc'), ['-p', 'tsconfig.test.json']],
    ['lint', binary('biome'), ['check', '--error-on-warnings']],
    ['vitest', binary('vitest'), ['run']],
    ['iotests', 'python3', [path.join(root, 'iotests/check')]],
  ];
}

/** What an edit is most likely to break, in a minute and a half on two cores: the rest is for `npm test`. */
function quickSteps() {
  const { units, without, peers, iotests } = JSON.parse(
    readFileSync(path.join(root, 'test/quick.json'), 'utf8'),
  );
  return [
    ['types', binary('tsc'), ['-p', 'tsconfig.test.json']],
    ['lint', binary('biome'), ['check', '--error-on-warnings']],
    [
      'vitest',
      binary('vitest'),
      ['run', '--reporter=dot', ...without.map((file) => `--exclude=${file}`), ...units, ...peers],
    ],
    ['iotests', 'python3', [path.join(root, 'iotests/check'), ...iotests]],
  ];
}

/** Runs every step even when one fails, so that one run tells all; prints what failed and which peers were missing. */
function runTests(steps) {
  const scratch = mkdtempSync(path.join(tmpdir(), 'qb-test-'));
  const skipLog = path.join(scratch, 'skipped');
  const env = { ...process.env, SKIPPED_PEERS_LOG: skipLog };
  const results = steps.map(([name, program, args]) => {
    process.stdout.write(`\n== ${name}\n`);
    const startMs = Date.now();
    const { status, signal, error } = spawnSync(program, args, { cwd: root, stdio: 'inherit', env });
    if (error?.code === 'ENOENT' && name === 'iotests' && process.env.REQUIRE_PEERS !== '1') {
      return { name, outcome: 'skipped: no python3', ok: true, seconds: 0 };
    }
    const outcome = error?.message ?? (status === 0 ? 'ok' : `failed (${signal ?? `status ${status}`})`);
    return { name, outcome, ok: status === 0, seconds: (Date.now() - startMs) / 1000 };
  });
  const skipped = existsSync(skipLog) ? readFileSync(skipLog, 'utf8').trim().split('\n') : [];
  rmSync(scratch, { recursive: true, force: true });
  process.stdout.write('\n== summary\n');
  for (const { name, outcome, seconds } of results) {
    process.stdout.write(`${name.padEnd(8)} ${outcome} (${seconds.toFixed(1)} s)\n`);
  }
  process.stdout.write(
    skipped.length === 0 ? 'no test was skipped for want of a peer\n' : summaryOfSkips(skipped),
  );
  process.exit(results.every((result) => result.ok) ? 0 : 1);
}

/** `lines` hold "PEER is missing (...): TEST"; returns one line a peer with the number of tests. */
function summaryOfSkips(lines) {
  const counts = new Map();
  for (const line of lines) {
    const peer = line.slice(0, line.indexOf('): ') + 1);
    counts.set(peer, (counts.get(peer) ?? 0) + 1);
  }
  return [...counts].map(([peer, count]) => `skipped ${count} test(s): ${peer}\n`).join('');
}

/** The suites that npm test runs for a while only, for `minutes` or so: random guests, power cuts, damaged images. */
function runSoak(minutes) {
  // Measured: a seed of each suite takes about 7, 10 and 20 seconds.
  const share = Math.max(1, minutes) * 20;
  const env = {
    MODEL_RUNS: String(Math.max(2, Math.round(share / 7))),
    POWER_CUT_RUNS: String(Math.max(2, Math.round(share / 10))),
    FUZZ_SECONDS: String(Math.round(share)),
    CHECK_RUNS: String(Math.round(share * 4)),
    MODEL_SEED: String(1 + Math.floor(Math.random() * 1e6)),
    POWER_CUT_SEED: String(1 + Math.floor(Math.random() * 1e6)),
    FUZZ_SEED: String(1 + Math.floor(Math.random() * 1e6)),
  };
  for (const [name, value] of Object.entries(env)) process.env[name] ??= value;
  const files = ['model', 'power-cut', 'fuzz', 'check', 'bitmaps'].map(
    (name) => `test/drivers/qcow2/${name}.test.ts`,
  );
  // Other formats: random guests and damaged images of each.
  files.push('test/drivers/formats');
  become(binary('vitest'), ['run', '--test-timeout', String(minutes * 120_000), ...files]);
}

/** Random graph changes under load: as many as the user wants, with a seed of their own. */
function runGraph(changes) {
  process.env.GRAPH_CHANGES ??= String(changes);
  process.env.GRAPH_SEED ??= String(1 + Math.floor(Math.random() * 1e6));
  process.stdout.write(`GRAPH_SEED=${process.env.GRAPH_SEED}\n`);
  become(binary('vitest'), ['run', 'test/peers/graph-load.test.ts']);
}

const QUICK_ENV = { MODEL_RUNS: '1', POWER_CUT_RUNS: '1', FUZZ_SECONDS: '2', CHECK_RUNS: '5' };

/** Virtual machines on our exports, for as many rounds of jobs, resizes and restarts as the user wants. */
function runVm(rounds) {
  process.env.VM_ROUNDS ??= String(rounds);
  become(binary('vitest'), ['run', 'test/vm']);
}

/** Hostile front ends of vhost-user-blk: so many mutated messages. */
function runVhost(messages) {
  process.env.HOSTILE_MESSAGES ??= String(messages);
  process.env.HOSTILE_SEED ??= String(1 + Math.floor(Math.random() * 1e6));
  process.stdout.write(`HOSTILE_SEED=${process.env.HOSTILE_SEED}\n`);
  become(binary('vitest'), ['run', 'test/exports/vhost-user-hostile.test.ts']);
}

// ---- the commands ----------------------------------------------------------------------------------------------

const benches = {
  bench: 'nbd',
  'bench-qcow2': 'qcow2',
  'bench-formats': 'formats',
  'bench-jobs': 'jobs',
  'bench-control': 'control',
  'bench-nbd-client': 'nbd-client',
  'bench-exports': 'exports',
  'bench-network': 'network/main',
  'bench-floor': 'floor',
  'bench-start': 'start',
  'bench-tools': 'tools/main',
  'bench-watchers': 'watchers',
};

const [command, ...args] = process.argv.slice(2);
switch (command) {
  case 'start':
    prepare();
    // Who starts it by hand wants to see that it is there, and who comes.
    process.env.QBLOCKD_LOG ??= 'info';
    become(
      path.join(root, 'daemon/bin/qblockd'),
      args.length > 0 ? args : ['--embedded', path.join(root, 'data')],
    );
    break;
  case 'test':
    prepare();
    if (args.length > 0) become(binary('vitest'), ['run', ...args]);
    else runTests(testSteps());
    break;
  case 'quick':
    prepare();
    // Suites of random work do a little of it.
    for (const [name, value] of Object.entries(QUICK_ENV)) process.env[name] ??= value;
    runTests(quickSteps());
    break;
  case 'soak':
    prepare();
    runSoak(Number(args[0] ?? 10));
    break;
  case 'graph':
    prepare();
    runGraph(Number(args[0] ?? 10_000));
    break;
  case 'vm':
    prepare();
    runVm(Number(args[0] ?? 5));
    break;
  case 'vhost':
    prepare();
    runVhost(Number(args[0] ?? 1_000_000));
    break;
  case 'bench':
  case 'bench-qcow2':
  case 'bench-formats':
  case 'bench-jobs':
  case 'bench-control':
  case 'bench-nbd-client':
  case 'bench-exports':
  case 'bench-network':
  case 'bench-floor':
  case 'bench-start':
  case 'bench-tools':
  case 'bench-watchers':
    prepare();
    become(process.execPath, [path.join(root, `dist/bench/${benches[command]}.js`), ...args]);
    break;
  case 'docs':
    prepare();
    become(process.execPath, [path.join(root, 'dist/docs/site/main.js')]);
    break;
  default:
    fail(
      'Usage: node scripts/run.mjs start|test|quick|soak|graph|docs|bench|bench-qcow2|bench-formats|bench-jobs|bench-control|bench-floor|bench-nbd-client|bench-network|bench-start|bench-tools|bench-watchers [ARGS]',
    );
}
