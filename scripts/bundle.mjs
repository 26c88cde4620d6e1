// Bundles the programs into dist/bundle/: one CommonJS file a program with everything but packages, and V8's code cache for
// it. Loading hundreds of small modules, and compiling, was most of a program's start. Modules that are imported
// dynamically, and packages, run when they are first needed. daemon/bin/load.cjs starts the programs.
// Run by scripts/build.mjs, after tsc has checked the types.
import { execFileSync, spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { isBuiltin } from 'node:module';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'rolldown';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const outDir = path.join(root, 'dist/bundle');
const DAY_MS = 24 * 3600 * 1000;

const programs = {
  qblockd: 'daemon/main.ts',
  'qblock-img': 'src/tools/img/main.ts',
  'qblock-io': 'src/tools/io/main.ts',
  'qblock-nbd': 'src/tools/nbd/main.ts',
  'qblock-shell': 'src/tools/shell/main.ts',
};

/** Entries of worker threads (src/aio/workers/pool.ts), which find their bundle by the same kind of name. */
const threads = { 'cipher-thread': 'src/drivers/crypto/cipher-thread.ts' };

/** Packages that stay where they are. Those that are ES modules only are bundled: a bundle cannot require them everywhere. */
const externalPackages =
  /^(@koromix\/[\w-]+|koffi|pino|ws|undici|ssh2|basic-ftp|aws4fetch|prom-client|yaml)(\/|$)/;
/** Loaded by node anyway, or by every program. */
const eager = new Set(['node:fs', 'node:path', 'node:util', 'node:buffer', 'node:os']);

/**
 * The native half of koffi is asked for by its place: through the packages' own modules it takes 4 ms to be found. Those are
 * asked where it is not there, is another version's, or is not for this libc.
 */
function koffiModule() {
  const { version } = JSON.parse(readFileSync(path.join(root, 'node_modules/koffi/package.json'), 'utf8'));
  return `let native;
    try { native = require('@koromix/koffi-linux-' + process.arch + '/linux_' + process.arch + '/koffi.node'); } catch {}
    module.exports = native?.version === ${JSON.stringify(version)} ? native : require('koffi');`;
}

// ---- the bundles -----------------------------------------------------------------------------------------------

const WRAPPER = '\0external:';

/** A CommonJS module that stands for a module of node, and loads it when one of its members is first used. */
function lazyBuiltin(id) {
  const members = Object.keys(process.getBuiltinModule(id)).filter((name) => /^[A-Za-z_]\w*$/.test(name));
  const getters = members.map((name) => `get ${name}() { return load().${name}; },`);
  return `let it;
    const load = () => it ??= require(${JSON.stringify(id)});
    module.exports = {\n${getters.join('\n')}\n};`;
}

/** What few runs need: a module of node waits for its first use, a package for that of a module that imports it. */
const lazyExternals = {
  name: 'lazy-externals',
  resolveId(id, importer) {
    if (!isBuiltin(id) && !externalPackages.test(id)) return null;
    if (id === 'koffi' && !importer?.startsWith(WRAPPER)) return { id: WRAPPER + id };
    if (eager.has(id) || importer?.startsWith(WRAPPER)) return { id, external: true };
    return { id: WRAPPER + id };
  },
  load(id) {
    if (!id.startsWith(WRAPPER)) return null;
    const name = id.slice(WRAPPER.length);
    if (name === 'koffi') return { code: koffiModule(), moduleType: 'js' };
    const code = isBuiltin(name) ? lazyBuiltin(name) : `module.exports = require(${JSON.stringify(name)});`;
    return { code, moduleType: 'js' };
  },
};

/** The file is read as one byte a character. Beyond ASCII there are only literals, for which escapes mean the same. */
function asciiOnly(code) {
  return code.replace(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

async function bundle(program, entry) {
  const { output } = await build({
    cwd: root,
    input: { [program]: entry },
    platform: 'node',
    plugins: [lazyExternals],
    transform: { target: 'es2023' },
    write: false,
    output: {
      dir: outDir,
      format: 'cjs',
      codeSplitting: false,
      sourcemap: true,
      comments: false,
      entryFileNames: '[name]-[hash].cjs',
    },
  });
  const [chunk] = output.filter(({ type }) => type === 'chunk');
  const map = output.find(({ fileName }) => fileName === `${chunk.fileName}.map`);
  const file = path.join(outDir, chunk.fileName);
  const code = asciiOnly(chunk.code);
  if (existsSync(file) && readFileSync(file, 'latin1') === code) return chunk.fileName;
  rmSync(`${file}.cache`, { force: true });
  if (map !== undefined) writeFileSync(`${file}.map`, map.source);
  writeFileSync(file, code);
  return chunk.fileName;
}

/** Makes `fileName` what the program's launcher starts. */
function publish(program, fileName) {
  const name = path.join(outDir, `${program}.name`);
  writeFileSync(`${name}.new`, fileName);
  renameSync(`${name}.new`, name);
}

// ---- the code caches -------------------------------------------------------------------------------------------

const bin = (program) => path.join(root, 'daemon/bin', program);
const { NODE_OPTIONS: _options, NODE_EXTRA_CA_CERTS: _certificates, ...cleanEnv } = process.env;
const env = { ...cleanEnv, QBLOCKD_WRITE_CODE_CACHE: '1' };

/** Runs of the tools whose code is to be in the caches, in the order in which they can run. */
const toolRuns = [
  ['qblock-img', 'create', '-f', 'qcow2', 'base', '1M'],
  ['qblock-img', 'create', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'over'],
  ['qblock-img', 'create', '-f', 'raw', 'raw', '1M'],
  ['qblock-io', '-c', 'write -P 1 0 128k', '-c', 'read 0 64k', '-c', 'flush', 'over'],
  ['qblock-io', '-r', '-c', 'read 0 4k', '-c', 'map', 'base'],
  ['qblock-io', '-f', 'raw', '-c', 'write -z 0 4k', '-c', 'discard 0 4k', 'raw'],
  ['qblock-img', 'info', 'over'],
  ['qblock-img', 'info', '--output=json', '--backing-chain', 'over'],
  ['qblock-img', 'check', 'over'],
  ['qblock-img', 'map', '--output=json', 'over'],
  ['qblock-img', 'convert', '-O', 'qcow2', 'over', 'copy'],
  ['qblock-img', 'convert', '-O', 'raw', 'over', 'copy.raw'],
  ['qblock-img', 'compare', 'over', 'copy'],
  ['qblock-img', 'rebase', '-b', 'copy', '-F', 'qcow2', 'over'],
  ['qblock-img', 'commit', 'over'],
  ['qblock-img', 'dd', '-f', 'qcow2', '-O', 'raw', 'bs=64k', 'if=base', 'of=copy.dd'],
  ['qblock-img', 'bitmap', '--add', 'base', 'b0'],
  ['qblock-img', 'bitmap', '--add', 'base', 'b1'],
  ['qblock-img', 'bitmap', '--merge', 'b1', 'base', 'b0'],
  ['qblock-img', 'bitmap', '--remove', 'base', 'b1'],
  ['qblock-img', 'bitmap', '--remove', 'base', 'b0'],
  ['qblock-img', 'snapshot', '-c', 's', 'copy'],
  ['qblock-img', 'resize', 'copy', '+1M'],
  ['qblock-img', 'measure', '-O', 'qcow2', 'copy'],
  ['qblock-img', 'info', 'over'],
];

/** What a management does first. Reading its arguments, above all those of blockdev-add, is the largest code to compile. */
function daemonCommands(dir) {
  const node = {
    driver: 'qcow2',
    'node-name': 'n',
    file: { driver: 'file', filename: path.join(dir, 'base') },
  };
  const list = [
    ['qmp_capabilities'],
    ['query-named-block-nodes'],
    ['query-block-exports'],
    ['blockdev-add', node],
    ['block-export-add', { type: 'nbd', id: 'f', 'node-name': 'n' }],
    ['query-block-jobs'],
    ['block-export-del', { id: 'f' }],
    ['blockdev-del', { 'node-name': 'n' }],
    ['quit'],
  ];
  return list.map(([execute, args]) => (args === undefined ? { execute } : { execute, arguments: args }));
}

/** Starts the daemon with a disk and an export, says hello, and ends it. */
async function runDaemon(dir) {
  const socket = path.join(dir, 'qmp');
  const daemon = spawn(
    bin('qblockd'),
    [
      ...['--chardev', `socket,id=c,path=${socket},server=on,wait=off`, '--monitor', 'chardev=c'],
      ...['--blockdev', `driver=qcow2,node-name=d,file.driver=file,file.filename=${path.join(dir, 'over')}`],
      ...['--nbd-server', `addr.type=unix,addr.path=${path.join(dir, 'nbd')}`],
      ...['--export', 'type=nbd,id=e,node-name=d,writable=on'],
    ],
    { stdio: ['ignore', 'ignore', 'inherit'], env },
  );
  const ended = new Promise((resolve) => daemon.once('exit', resolve));
  while (!existsSync(socket) && daemon.exitCode === null)
    await new Promise((resolve) => setTimeout(resolve, 10));
  const client = connect(socket);
  // The socket is there a moment before anybody listens on it.
  client.on('error', () => daemon.kill());
  const limit = setTimeout(() => daemon.kill('SIGKILL'), 20_000);
  for (const command of daemonCommands(dir)) client.write(JSON.stringify(command));
  client.resume();
  await ended;
  clearTimeout(limit);
}

/** A cache holds what ran while it was made, so every program does what it does most. Without one all works, slower. */
async function makeCaches() {
  const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-build-'));
  try {
    for (const [program, ...args] of toolRuns)
      execFileSync(bin(program), args, { cwd: dir, env, stdio: ['ignore', 'ignore', 'inherit'] });
    await runDaemon(dir);
  } catch (error) {
    process.stderr.write(`The code cache is incomplete: ${error.message}\n`);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

// ---- all of it -------------------------------------------------------------------------------------------------

mkdirSync(outDir, { recursive: true });
const names = [];
for (const [program, entry] of Object.entries(programs)) {
  const name = await bundle(program, entry);
  publish(program, name);
  names.push(name);
}
const threadNames = [];
for (const [thread, entry] of Object.entries(threads)) {
  const name = await bundle(thread, entry);
  publish(thread, name);
  threadNames.push(name);
}
if (names.some((name) => !existsSync(path.join(outDir, `${name}.cache`)))) await makeCaches();

// A program that was started a moment ago may still be about to read its own build.
for (const name of readdirSync(outDir)) {
  const file = path.join(outDir, name);
  const isCurrent =
    [...names, ...threadNames].some((current) => name.startsWith(current)) || name.endsWith('.name');
  if (!isCurrent && statSync(file).mtimeMs < Date.now() - DAY_MS) rmSync(file, { recursive: true });
}
