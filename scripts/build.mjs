// Builds the tree into dist/: the schema generator, the files it generates, everything else, then the bundles of the programs.
// Usage: node scripts/build.mjs [--force]      Does nothing when no input is newer than the last build.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const stampFile = path.join(root, 'dist/.built');
const inputs = ['schema', 'src', 'daemon', 'client', 'bench', 'package.json', 'tsconfig.json', 'scripts'];

/** Newest modification time (ms) below the given paths; generated files do not count. */
function newestMs(paths) {
  let newest = 0;
  for (const entry of paths) {
    if (entry.endsWith('generated') || !existsSync(entry)) continue;
    const stat = statSync(entry);
    newest = Math.max(newest, stat.mtimeMs);
    if (stat.isDirectory())
      newest = Math.max(newest, newestMs(readdirSync(entry).map((name) => path.join(entry, name))));
  }
  return newest;
}

function run(command, args) {
  execFileSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] });
}

/** Brings dist/ up to date; throws when a step fails. Returns whether anything was built. */
export function build({ force = false } = {}) {
  const newest = newestMs(inputs.map((entry) => path.join(root, entry)));
  const builtMs = existsSync(stampFile) ? statSync(stampFile).mtimeMs : 0;
  if (!force && builtMs >= newest) return false;
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc');
  if (force) rmSync(path.join(root, 'dist'), { recursive: true, force: true });
  const schemaMs = newestMs(
    ['schema', 'client/python', 'package.json'].map((entry) => path.join(root, entry)),
  );
  if (force || schemaMs > builtMs || !existsSync(path.join(root, 'schema/generated/types.ts'))) {
    run(process.execPath, [tsc, '-p', 'schema/generator']);
    run(process.execPath, ['dist/schema/generator/main.js']);
  }
  run(process.execPath, [tsc, '-p', '.']);
  run(process.execPath, ['scripts/bundle.mjs']);
  mkdirSync(path.dirname(stampFile), { recursive: true });
  writeFileSync(stampFile, '');
  // The stamp carries the newest input's time, so that an edit made during the build is not missed.
  utimesSync(stampFile, newest / 1000 + 0.001, newest / 1000 + 0.001);
  return true;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  build({ force: process.argv.includes('--force') });
