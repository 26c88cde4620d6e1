// What `npm start`, `npm test` and `npm run bench` do: install what is missing, build what is stale, then go.
// Usage: node scripts/run.mjs start|test|bench [ARGS]      Needs Node and npm only; signals and the exit status pass through.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from './build.mjs';

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

/** Modification time in ms, 0 where there is no such file. */
function mtimeMs(file) {
  return existsSync(file) ? statSync(file).mtimeMs : 0;
}

/** Runs npm; returns whether it succeeded. What it prints goes to stderr, so that stdout is the daemon's alone. */
function npm(args) {
  const script = process.env.npm_execpath ?? '';
  const [program, ...before] = script.endsWith('npm-cli.js') ? [process.execPath, script] : ['npm'];
  const options = ['--include=dev', '--no-audit', '--no-fund', '--loglevel=error'];
  return (
    spawnSync(program, [...before, ...args, ...options], { cwd: root, stdio: ['ignore', 2, 2] }).status === 0
  );
}

/** Installs the packages when node_modules is missing or older than the lock file. */
function install() {
  const installedMs = mtimeMs(path.join(root, 'node_modules/.package-lock.json'));
  if (installedMs >= mtimeMs(path.join(root, 'package-lock.json'))) return;
  process.stderr.write('Installing packages...\n');
  // `npm ci` refuses when the registry's idea of optional packages differs from the lock file's.
  if (!npm(['ci']) && !npm(['install', '--no-save'])) fail('The packages could not be installed');
}

function prepare() {
  checkNode();
  install();
  try {
    build();
  } catch (error) {
    fail(`The build failed: ${error.message}`);
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

/** Runs every step even when one fails, so that one run tells all; prints what failed and which peers were missing. */
function runTests() {
  const scratch = mkdtempSync(path.join(tmpdir(), 'qb-test-'));
  const skipLog = path.join(scratch, 'skipped');
  const env = { ...process.env, SKIPPED_PEERS_LOG: skipLog };
  const results = testSteps().map(([name, program, args]) => {
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
  become(binary('vitest'), ['run', '--test-timeout', String(minutes * 120_000), ...files]);
}

/** Random graph changes under load: as many as the user wants, with a seed of their own. */
function runGraph(changes) {
  process.env.GRAPH_CHANGES ??= String(changes);
  process.env.GRAPH_SEED ??= String(1 + Math.floor(Math.random() * 1e6));
  process.stdout.write(`GRAPH_SEED=${process.env.GRAPH_SEED}\n`);
  become(binary('vitest'), ['run', 'test/peers/graph-load.test.ts']);
}

// ---- the commands ----------------------------------------------------------------------------------------------

const benches = {
  bench: 'nbd',
  'bench-qcow2': 'qcow2',
  'bench-jobs': 'jobs',
  'bench-control': 'control',
  'bench-nbd-client': 'nbd-client',
  'bench-start': 'start',
  'bench-tools': 'tools',
};

const [command, ...args] = process.argv.slice(2);
switch (command) {
  case 'start':
    prepare();
    become(
      path.join(root, 'daemon/bin/qblockd'),
      args.length > 0 ? args : ['--embedded', path.join(root, 'data')],
    );
    break;
  case 'test':
    prepare();
    if (args.length > 0) become(binary('vitest'), ['run', ...args]);
    else runTests();
    break;
  case 'soak':
    prepare();
    runSoak(Number(args[0] ?? 10));
    break;
  case 'graph':
    prepare();
    runGraph(Number(args[0] ?? 10_000));
    break;
  case 'bench':
  case 'bench-qcow2':
  case 'bench-jobs':
  case 'bench-control':
  case 'bench-nbd-client':
  case 'bench-start':
  case 'bench-tools':
    prepare();
    become(process.execPath, [path.join(root, `dist/bench/${benches[command]}.js`), ...args]);
    break;
  default:
    fail(
      'Usage: node scripts/run.mjs start|test|soak|graph|bench|bench-qcow2|bench-jobs|bench-control|bench-nbd-client|bench-start|bench-tools [ARGS]',
    );
}
