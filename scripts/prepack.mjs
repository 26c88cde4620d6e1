// Makes the tree ready to be packed (npm pack runs it): builds it, leaves the bundles of this build only, and writes the
// type declarations of the client. What goes into the package is named in package.json ("files", "bin", "exports").
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from './build.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const bundles = path.join(root, 'dist/bundle');

build({ begin: () => process.stderr.write('Building ...\n') });

const names = readdirSync(bundles);
const current = names
  .filter((name) => name.endsWith('.name'))
  .map((name) => readFileSync(path.join(bundles, name), 'latin1'));
for (const name of names) {
  const isCurrent = name.endsWith('.name') || current.some((bundle) => name.startsWith(bundle));
  if (!isCurrent) rmSync(path.join(bundles, name), { recursive: true });
}

const tsc = path.join(root, 'node_modules/typescript/bin/tsc');
const args = [tsc, '-p', 'client/tsconfig.json'];
const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 2, 2] });
process.exitCode = status ?? 1;
