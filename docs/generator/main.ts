/**
 * Writes dist/share/: man pages, and completions for bash and zsh, where a package puts them under /usr/share. Run by
 * scripts/build.mjs.
 */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { PACKAGE_VERSION } from '../../src/qmp/version.ts';
import { imageFormats, keyedOptions } from './choices.ts';
import { bashCompletion } from './completion-bash.ts';
import { zshCompletion } from './completion-zsh.ts';
import { manPage } from './man.ts';
import { PROGRAMS } from './programs.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const share = path.join(root, 'dist/share');

function write(file: string, text: string): void {
  const target = path.join(share, file);
  mkdirSync(path.dirname(target), { recursive: true });
  writeFileSync(target, text);
}

/** The day on which the pages are made; SOURCE_DATE_EPOCH says another one, for builds that can be repeated. */
function today(): string {
  const epoch = process.env.SOURCE_DATE_EPOCH;
  return (epoch === undefined ? new Date() : new Date(Number(epoch) * 1000)).toISOString().slice(0, 10);
}

rmSync(share, { recursive: true, force: true });
const engine = readFileSync(path.join(root, 'docs/generator/engine.bash'), 'utf8');
const choices = { formats: await imageFormats(), keyed: keyedOptions() };
for (const program of PROGRAMS) {
  write(`man/man1/${program.name}.1`, manPage(program, PACKAGE_VERSION, today()));
  write(`bash-completion/completions/${program.name}`, bashCompletion(program, choices, engine));
  write(`zsh/vendor-completions/_${program.name}`, zshCompletion(program, choices));
}
