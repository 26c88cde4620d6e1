/** Runs one command line with both tools on equal files, and says in what they differ: output, exit status, files. */

import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { limitMs } from '../../patience.ts';

export interface Outcome {
  readonly status: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

const TIMEOUT_MS = 60_000;

export function run(program: string, words: readonly string[], cwd: string): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, TZ: 'UTC', LC_ALL: 'C' };
    const options = { cwd, env, timeout: limitMs(TIMEOUT_MS), killSignal: 'SIGKILL' as const };
    const child = execFile(program, words, options, (error, stdout, stderr) =>
      resolve({ status: error === null ? 0 : (error.code ?? String(error.signal)), stdout, stderr }),
    );
    child.stdin?.end();
  });
}

/** A link to our tool by the original's name, so that both say the same of themselves. */
export function linkAs(name: string, ours: string, folder: string): string {
  const link = path.join(folder, name);
  symlinkSync(ours, link);
  return link;
}

const QCOW2_MAGIC = 'QFI\u00fb';

/** Images as the original sees them, without what chance and time decide. */
async function described(file: string): Promise<string> {
  const { stdout, stderr } = await run('qemu-img', ['info', '-U', '--output=json', file], path.dirname(file));
  const text = stdout
    .replace(/"(actual-size|date-n?sec|filename)": .*/g, '"$1"')
    .replace(/"full-backing-filename": .*/g, '');
  return text + stderr.replaceAll(file, 'FILE');
}

/** In what the files of two folders differ; `fixture`: where both began. */
async function fileDifferences(
  theirs: string,
  ours: string,
  fixture: string,
  failed: boolean,
  chance: boolean,
): Promise<string[]> {
  const names = [...new Set([theirs, ours].flatMap((folder) => readdirSync(folder)))];
  const differences: string[] = [];
  for (const name of names) {
    const [a, b, before] = [theirs, ours, fixture].map((folder) => read(path.join(folder, name)));
    // What fails may be refused before anything is made.
    if (failed && (before === null ? b === null : b !== null && before!.equals(b!))) continue;
    if (a === null || b === null) differences.push(`${name} is there on one side only`);
    // How far requests had come that ran beside one that failed is chance.
    else if (failed && chance) continue;
    else if (a!.equals(b!) || (before?.equals(a!) && before.equals(b!))) continue;
    else if (![a!, b!].every((bytes) => bytes.toString('latin1', 0, 4) === QCOW2_MAGIC))
      differences.push(`${name} has other bytes`);
    else {
      const files = [path.join(theirs, name), path.join(ours, name)] as const;
      const [one, two] = [await described(files[0]), await described(files[1])];
      if (one !== two) differences.push(`${name} is described as\n${two}instead of\n${one}`);
      const formats = ['-f', 'qcow2', '-F', 'qcow2'];
      const same = await run('qemu-img', ['compare', ...formats, ...files], theirs);
      const checked = [
        await run('qemu-img', ['check', files[0]], theirs),
        await run('qemu-img', ['check', files[1]], ours),
      ];
      if (same.status !== 0 && checked[0]!.status === 0)
        differences.push(`${name}: ${same.stdout}${same.stderr}`);
      if (checked[0]!.status !== checked[1]!.status) differences.push(`${name}: check ${checked[1]!.stdout}`);
    }
  }
  return differences;
}

function read(file: string): Buffer | null {
  try {
    return readFileSync(file);
  } catch {
    return null;
  }
}

export interface Pair {
  readonly theirs: string;
  readonly ours: string;
  /** Changes output before it is compared. */
  readonly normalise: (text: string) => string;
}

/** What is different when `words` are given to both; empty when nothing is. */
export async function differences(
  pair: Pair,
  words: readonly string[],
  fixture: string,
  scratch: string,
): Promise<string[]> {
  const [theirs, ours] = ['theirs', 'ours'].map((side) => path.join(scratch, side)) as [string, string];
  rmSync(scratch, { recursive: true, force: true });
  mkdirSync(scratch, { recursive: true });
  for (const folder of [theirs, ours]) cpSync(fixture, folder, { recursive: true });
  const outcomes = [await run(pair.theirs, words, theirs), await run(pair.ours, words, ours)];
  // There is nothing to learn from a crash.
  if (['SIGSEGV', 'SIGABRT'].includes(String(outcomes[0]!.status))) return [];
  const [a, b] = outcomes.map(({ status, stdout, stderr }) =>
    [`status ${status}`, pair.normalise(stdout), pair.normalise(stderr)].join('\n--\n'),
  );
  const said = a === b ? [] : [`says\n${b}\ninstead of\n${a}`];
  const found = [
    ...said,
    ...(await fileDifferences(
      theirs,
      ours,
      fixture,
      outcomes.every(({ status }) => status !== 0),
      words[0] === 'bench',
    )),
  ];
  rmSync(scratch, { recursive: true, force: true });
  return found.map(
    (text) => `${words.map((word) => (/[\s]|^$/.test(word) ? `'${word}'` : word)).join(' ')}\n${text}`,
  );
}
