/**
 * Runs a tool of ours and the original's with the same command lines on equal files, and gives what both did: output,
 * exit status, and the images that are there afterwards.
 */

import { execFile } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { limitMs } from '../patience.ts';
import { repositoryRoot } from './daemons.ts';
import { withoutHolders } from './newer-members.ts';

/** How one command ended. */
export interface ToolOutcome {
  readonly command: string;
  readonly status: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

/** What became of an image, as the original's tools see it. */
export interface ImageState {
  readonly name: string;
  readonly info: string;
  readonly map: string;
  /** Space it takes; three digits of it. */
  readonly diskBytes: number;
}

export interface ToolCase {
  /** Command lines of the tool, one after another: words between blanks, or the words themselves. */
  readonly run: readonly (string | readonly string[])[];
  /** Images that must come out equal: allocation, description and content. "NAME:FORMAT" where it is not probed. */
  readonly images?: readonly string[];
  /** Changes output before it is compared. */
  readonly normalise?: (text: string) => string;
}

/** The tool under test and its original. */
export const TOOLS = {
  img: { ours: path.join(repositoryRoot, 'daemon/bin/qblock-img'), theirs: 'qemu-img' },
  io: { ours: path.join(repositoryRoot, 'daemon/bin/qblock-io'), theirs: 'qemu-io' },
} as const;

const TIMEOUT_MS = 120_000;
/** The original measures its own speed when it makes LUKS headers, and now and then gives up: it is asked again. */
const GAVE_UP = 'Unable to get accurate CPU usage';
const MAX_ATTEMPTS = 100;

/** Runs a program to its end in `cwd`; one that does not end is killed. */
export function runTool(program: string, args: readonly string[], cwd: string): Promise<ToolOutcome> {
  return new Promise((resolve) => {
    const child = execFile(
      program,
      args,
      {
        cwd,
        timeout: limitMs(TIMEOUT_MS),
        killSignal: 'SIGKILL',
        env: { ...process.env, TZ: 'UTC', LC_ALL: 'C' },
      },
      (error, stdout, stderr) => {
        const status = error === null ? 0 : (error.code ?? String(error.signal));
        resolve({ command: args.join(' '), status, stdout, stderr });
      },
    );
    child.stdin?.end();
  });
}

/** Times of snapshots, and numbers that are made up anew for each image. */
function withoutChance(text: string): string {
  return text
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'DATE')
    .replace(/("date-n?sec"): \d+/g, '$1: N')
    .replace(/(uuid"?: )"?[0-9a-f-]{36}"?/g, '$1UUID')
    .replace(/(iters"?: )\d+/g, '$1N');
}

interface MapEntry {
  readonly start: number;
  length: number;
  zero: boolean;
  readonly data: boolean;
  readonly offset?: number;
}

/**
 * A map without what the host and the order of concurrent requests decide: whether an allocated cluster has holes in
 * the file, and where it lies. Entries that do not differ any more become one.
 */
function plainMap(text: string): string {
  const merged: MapEntry[] = [];
  for (const entry of JSON.parse(text) as MapEntry[]) {
    const { offset: _place, ...plain } = entry;
    if (plain.data) plain.zero = false;
    const last = merged.at(-1);
    const { start: _start, length: _length, ...kind } = plain;
    const { start: _lastStart, length: _lastLength, ...lastKind } = last ?? ({} as MapEntry);
    if (last !== undefined && JSON.stringify(kind) === JSON.stringify(lastKind)) last.length += plain.length;
    else merged.push(plain);
  }
  return JSON.stringify(merged, null, 1);
}

/** Space on the disk in bytes; negative when the text does not say. */
function diskSize(info: string): number {
  const [, number = '-1', unit = ''] = /disk size: ([\d.e+]+) (\w*)B/.exec(info) ?? [];
  return Number(number) * 1024 ** ['', 'Ki', 'Mi', 'Gi'].indexOf(unit);
}

async function stateOf(image: string, dir: string): Promise<ImageState> {
  const [name = '', format] = image.split(':');
  if (!existsSync(path.join(dir, name))) return { name, info: 'missing', map: '', diskBytes: -1 };
  const formatArgs = format === undefined ? [] : ['-f', format];
  const info = await runTool('qemu-img', ['info', ...formatArgs, name], dir);
  const map = await runTool('qemu-img', ['map', ...formatArgs, '--output=json', name], dir);
  return {
    name,
    info: withoutChance(info.stdout).replace(/^disk size: .*$/m, 'disk size: SIZE'),
    map: map.status === 0 ? plainMap(map.stdout) : map.stderr,
    diskBytes: diskSize(info.stdout),
  };
}

export interface ToolResult {
  readonly outcomes: readonly ToolOutcome[];
  readonly images: readonly ImageState[];
}

/** Runs a case with both tools; each gets a copy of `fixture` under `scratch`. */
export async function runBoth(
  tool: keyof typeof TOOLS,
  toolCase: ToolCase,
  fixture: string,
  scratch: string,
): Promise<{ readonly theirs: ToolResult; readonly ours: ToolResult; readonly contents: readonly string[] }> {
  const results = { theirs: await runOne('theirs'), ours: await runOne('ours') };
  const contents: string[] = [];
  for (const image of toolCase.images ?? []) {
    const [name = '', format] = image.split(':');
    const formats = format === undefined ? [] : ['-f', format, '-F', format];
    const both = ['theirs', 'ours'].map((side) => path.join(scratch, side, name));
    if (!both.every((file) => existsSync(file))) continue;
    const { stdout, stderr } = await runTool(
      'qemu-img',
      ['compare', ...formats, ...both],
      path.join(scratch, 'theirs'),
    );
    contents.push(`${name}: ${stdout}${stderr}`);
    if (results.theirs.images.some((state) => state.name === name && state.info.includes('qcow2'))) {
      const check = await runTool(
        'qemu-img',
        ['check', '-q', ...formats.slice(0, 2), both[1]!],
        path.join(scratch, 'ours'),
      );
      if (check.status !== 0) contents.push(`${name}: check ${check.status}\n${check.stderr}`);
    }
  }
  return { ...results, contents };

  async function runOne(side: 'theirs' | 'ours'): Promise<ToolResult> {
    const dir = path.join(scratch, side);
    rmSync(dir, { recursive: true, force: true });
    mkdirSync(dir, { recursive: true });
    cpSync(fixture, dir, { recursive: true });
    const program = TOOLS[tool][side];
    const outcomes: ToolOutcome[] = [];
    for (const line of toolCase.run) {
      const args = typeof line === 'string' ? line.split(' ') : line;
      let outcome = await runTool(program, args, dir);
      for (let attempt = 1; outcome.stderr.includes(GAVE_UP) && attempt < MAX_ATTEMPTS; attempt++)
        outcome = await runTool(program, args, dir);
      const { command, status, stdout, stderr } = outcome;
      const clean = (text: string): string =>
        (toolCase.normalise ?? ((same: string) => same))(
          withoutChance(
            withoutHolders(
              text.replaceAll(path.basename(TOOLS[tool].ours), path.basename(TOOLS[tool].theirs)),
            ),
          ),
        );
      outcomes.push({ command, status, stdout: clean(stdout), stderr: clean(stderr) });
    }
    const images: ImageState[] = [];
    for (const image of toolCase.images ?? []) images.push(await stateOf(image, dir));
    return { outcomes, images };
  }
}
