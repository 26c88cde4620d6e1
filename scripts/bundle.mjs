// Bundles the programs into dist/bundle/: one file a program with what it always needs, and pieces for what it loads when
// needed. Loading hundreds of small modules was more than half of a program's start. Packages stay where they are.
// Run by scripts/build.mjs, after tsc has checked the types.
import { readdirSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'rolldown';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const outDir = path.join(root, 'dist/bundle');
const DAY_MS = 24 * 3600 * 1000;

await build({
  cwd: root,
  input: {
    qblockd: 'daemon/main.ts',
    'qblock-img': 'src/tools/img/main.ts',
    'qblock-io': 'src/tools/io/main.ts',
  },
  platform: 'node',
  external: ['koffi', 'pino', 'ws'],
  transform: { target: 'es2023' },
  output: {
    dir: outDir,
    format: 'esm',
    sourcemap: true,
    entryFileNames: '[name].js',
    // A program that runs goes on loading the pieces of its own build.
    chunkFileNames: 'pieces/[name]-[hash].js',
  },
});

const pieces = path.join(outDir, 'pieces');
for (const name of readdirSync(pieces)) {
  const file = path.join(pieces, name);
  if (statSync(file).mtimeMs < Date.now() - DAY_MS) rmSync(file);
}
