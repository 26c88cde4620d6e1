// Builds the tree into dist/: the schema generator, the files it generates, everything else, the bundles of the
// programs, then man pages and completions.
// Usage: node scripts/build.mjs [--force]      Does nothing when no input has changed since the last build.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const stampFile = path.join(root, 'dist/.built');
const schemaInputs = ['schema', 'package.json'];
const inputs = [
  ...schemaInputs,
  'src',
  'daemon',
  'bench',
  'tsconfig.json',
  'scripts',
  'client',
  'console',
  'docs',
  'CHANGELOG.md',
];

/** What went wrong with a build, for the user. What a step had to say has been printed. */
export class BuildError extends Error {}

function addToHash(hash, file) {
  if (path.basename(file) === 'generated' || !existsSync(file)) return;
  if (!statSync(file).isDirectory()) {
    hash
      .update(`${path.relative(root, file)}\0`)
      .update(readFileSync(file))
      .update('\0');
    return;
  }
  for (const name of readdirSync(file).sort()) addToHash(hash, path.join(file, name));
}

/** Tells contents apart, not times: a tree that was copied or checked out anew has not changed. */
function hashOf(names) {
  const hash = createHash('sha256');
  for (const name of names) addToHash(hash, path.join(root, name));
  return hash.digest('hex');
}

/** What the last build was made of; empty when there was none. */
function readStamp() {
  try {
    return JSON.parse(readFileSync(stampFile, 'utf8'));
  } catch {
    return {};
  }
}

/** Runs a step; its output goes to stderr. */
function run(step, args) {
  const { status, error } = spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status !== 0) throw new BuildError(`The build failed: ${step}${error ? `: ${error.message}` : ''}`);
}

function checkWritable() {
  try {
    accessSync(root, constants.W_OK);
    if (existsSync(path.join(root, 'dist'))) accessSync(path.join(root, 'dist'), constants.W_OK);
  } catch (error) {
    throw new BuildError(
      `This tree has to be built, but cannot be written to (${error.code}): ${root}\nBuild it elsewhere (npm ci, npm run build) and copy it with dist/ and node_modules/.`,
    );
  }
}

/** Brings dist/ up to date; throws when a step fails. `begin` is called when there is anything to do. Returns whether there was. */
export function build({ force = false, begin = () => undefined } = {}) {
  const made = { inputs: hashOf(inputs), schema: hashOf(schemaInputs) };
  const last = force ? {} : readStamp();
  if (last.inputs === made.inputs) return false;
  checkWritable();
  begin();
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc');
  if (force) rmSync(path.join(root, 'dist'), { recursive: true, force: true });
  else rmSync(stampFile, { force: true });
  if (last.schema !== made.schema || !existsSync(path.join(root, 'schema/generated/types.ts'))) {
    run('the schema generator does not compile', [tsc, '-p', 'schema/generator']);
    run('the schema cannot be generated from', ['dist/schema/generator/main.js']);
  }
  run('the sources do not compile', [tsc, '-p', '.']);
  run('the sources of the console do not compile', [tsc, '-p', 'console']);
  run('the console cannot be bundled', ['scripts/bundle-console.mjs']);
  run('the programs cannot be bundled', ['scripts/bundle.mjs']);
  run('man pages and completions cannot be made', ['dist/docs/generator/main.js']);
  mkdirSync(path.dirname(stampFile), { recursive: true });
  // Made before the build: an edit during it is not missed.
  writeFileSync(stampFile, JSON.stringify(made));
  return true;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  try {
    build({ force: process.argv.includes('--force') });
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}
