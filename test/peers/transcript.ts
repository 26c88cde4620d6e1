/**
 * Runs a QMP script against a daemon and writes down what came back, in a form two daemons can be compared by.
 *
 * A transcript is data: files to make, then steps. The record of a run is text: requests and normalised replies and
 * events. What may differ between two right answers (times, versions, temporary paths, generated node names, what
 * the file system does) is normalised here; everything else must be equal.
 */

import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { type DaemonKind, type ExitReport, type RunningDaemon, reportOf, startDaemon } from './daemons.ts';
import { withoutNewer } from './newer-members.ts';
import type { QmpClient, QmpMessage } from './qmp-client.ts';

/** One thing a transcript does. `$DIR` in any string stands for the scratch folder. */
export type Step =
  | { readonly execute: string; readonly arguments?: unknown; readonly id?: unknown }
  /** Text sent as it is; then this many replies are read. */
  | { readonly send: string; readonly replies: number }
  /** Reads messages until this event. */
  | { readonly event: string }
  /** Runs a program to its end and records its status and output; preparations that fail make the test fail. */
  | { readonly run: readonly string[]; readonly mustSucceed?: boolean }
  /** Starts a second `qemu-storage-daemon` with these arguments, to hold locks. */
  | { readonly hold: readonly string[] }
  /** Ends it. */
  | { readonly release: true }
  /** Reads until the connection closes and the daemon has ended, and records the exit status. */
  | { readonly exit: true }
  | { readonly note: string };

type FileContent = number | string | (() => Buffer) | { readonly link: string } | 'dir/';

export interface Transcript {
  readonly name: string;
  readonly args?: readonly string[];
  /** Files to make in the scratch folder: size in bytes (sparse), or content, or a link, or a folder. */
  readonly files?: Readonly<Record<string, FileContent>>;
  /** Negotiate before the first step; the greeting is recorded either way. Default true. */
  readonly negotiate?: boolean;
  /** Peers besides the daemons. */
  readonly needs?: readonly string[];
  /** Runs only where a loop device can be had: as root, and not in every container. */
  readonly loopDevice?: boolean;
  readonly steps: readonly Step[];
  /** A program run at the end, whatever happened. */
  readonly cleanup?: readonly string[];
}

/** A command step. */
export function cmd(execute: string, args?: unknown): Step {
  return args === undefined ? { execute } : { execute, arguments: args };
}

function makeFiles(transcript: Transcript, dir: string): void {
  for (const [name, content] of Object.entries(transcript.files ?? {})) {
    const file = path.join(dir, name);
    if (content === 'dir/') mkdirSync(file);
    else if (typeof content === 'function') writeFileSync(file, content());
    else if (typeof content === 'object') symlinkSync(content.link.replaceAll('$DIR', dir), file);
    else {
      writeFileSync(file, typeof content === 'string' ? content : '');
      if (typeof content === 'number') truncateSync(file, content);
    }
  }
}

// ---- normalising ---------------------------------------------------------------------------------------------

/** Members whose value depends on time or on the file system; only their being there is compared. */
const variableNumbers = /^(actual-size|idle_time_ns|(rd|wr|flush|unmap)_total_time_ns|seconds|microseconds)$/;

/** Makes the replies of one run comparable with those of another; holds the names seen so far. */
export class Normaliser {
  readonly #dir: string;
  readonly #nodeNames = new Map<string, string>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  text(text: string): string {
    return text
      .replaceAll(this.#dir, '$DIR')
      .replace(/#block\d+/g, (name) => {
        const known = this.#nodeNames.get(name) ?? `#block<${this.#nodeNames.size}>`;
        this.#nodeNames.set(name, known);
        return known;
      })
      .replace(/ ops; .*$/gm, ' ops')
      .replace(/^disk size: .*$/gm, 'disk size: <n>')
      .replace(/\/dev\/loop\d+/g, '/dev/loop<N>');
  }

  /** Sorts members, replaces what varies. */
  value(value: unknown, key = ''): unknown {
    if (typeof value === 'string') {
      // The order of members in a json: file name means nothing.
      return this.text(
        value.startsWith('json:{') ? `json:${JSON.stringify(this.value(JSON.parse(value.slice(5))))}` : value,
      );
    }
    if (typeof value === 'number' && variableNumbers.test(key)) return '<n>';
    if (Array.isArray(value)) return value.map((item) => this.value(item, key));
    if (value === null || typeof value !== 'object') return value;
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    const isVersion = key === 'version' || ('qemu' in value && 'package' in value);
    if (isVersion) return '<version>';
    return Object.fromEntries(entries.map(([name, item]) => [name, this.value(item, name)]));
  }
}

// ---- running -------------------------------------------------------------------------------------------------

function substitute<T>(value: T, dir: string): T {
  return JSON.parse(JSON.stringify(value).replaceAll('$DIR', dir)) as T;
}

/** Commands whose list comes in the order of a hash table in the original. */
const UNORDERED = new Set(['query-chardev', 'query-chardev-backends', 'qom-list', 'qom-list-types']);

function sorted(list: readonly unknown[]): readonly unknown[] {
  const byText = (a: unknown, b: unknown): number => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1);
  return list.map((item) => sortMembers(item)).sort(byText);
}

function sortMembers(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function isReply(message: QmpMessage): boolean {
  return 'return' in message || 'error' in message;
}

/** Shows long runs of one character by their length. */
function abbreviate(text: string): string {
  return text.replace(/([a-z])\1{79,}/g, (run: string) => `${run[0]}{${run.length}}`);
}

/** One JSON value a line where short, indented where long: goldens are read by people. */
function format(value: unknown): string {
  const flat = abbreviate(JSON.stringify(value));
  return flat.length <= 160 ? flat : abbreviate(JSON.stringify(value, null, 2));
}

class Recorder {
  readonly lines: string[] = [];
  readonly #daemon: RunningDaemon;
  readonly #client: QmpClient;
  readonly #normaliser: Normaliser;
  #holder: { stop(): Promise<ExitReport> } | null = null;

  constructor(daemon: RunningDaemon, client: QmpClient) {
    this.#daemon = daemon;
    this.#client = client;
    this.#normaliser = new Normaliser(daemon.dir);
  }

  /** Records messages until `done` says so, or the connection's end. Throws when nothing comes: both silent is no agreement. */
  async until(done: (message: QmpMessage) => boolean, unordered = false): Promise<void> {
    for (;;) {
      const message = await this.#client.next().catch(() => {
        throw new Error(`silence after\n${this.lines.slice(-8).join('\n')}`);
      });
      if (message === null) {
        this.lines.push('<- (closed)');
        return;
      }
      const shown = unordered && Array.isArray(message.return) ? { return: sorted(message.return) } : message;
      this.lines.push(`<- ${format(this.#normaliser.value(withoutNewer(shown)))}`);
      if (done(message)) return;
    }
  }

  async #run(argv: readonly string[], mustSucceed: boolean): Promise<void> {
    const [program = '', ...args] = substitute(argv, this.#daemon.dir);
    const child = spawn(program, args, { cwd: this.#daemon.dir, stdio: ['ignore', 'pipe', 'pipe'] });
    const report = await reportOf(child);
    this.lines.push(`$ ${argv.join(' ')}`);
    for (const text of [report.stdout, report.stderr]) {
      if (text !== '') this.lines.push(this.#normaliser.text(text.trimEnd()));
    }
    if (mustSucceed && report.status !== 0) throw new Error(this.lines.slice(-3).join('\n'));
    this.lines.push(`status ${report.status ?? report.signal}`);
  }

  async #hold(args: readonly string[]): Promise<void> {
    this.#holder = await startHolder(substitute(args, this.#daemon.dir), this.#daemon.dir);
    this.lines.push(`& qemu-storage-daemon ${args.join(' ')}`);
  }

  async release(): Promise<void> {
    await this.#holder?.stop();
    this.#holder = null;
  }

  async step(step: Step): Promise<void> {
    if ('note' in step) this.lines.push('', `# ${step.note}`);
    else if ('event' in step) await this.until((message) => message.event === step.event);
    else if ('run' in step) await this.#run(step.run, step.mustSucceed === true);
    else if ('hold' in step) await this.#hold(step.hold);
    else if ('release' in step) {
      await this.release();
      this.lines.push('& released');
    } else if ('exit' in step) {
      await this.until(() => false);
      const report = await this.#daemon.exited;
      this.lines.push(`status ${report.status ?? report.signal}`);
      if (report.stderr !== '') this.lines.push(this.#normaliser.text(report.stderr.trimEnd()));
    } else if ('send' in step) {
      this.lines.push(`-> (text) ${JSON.stringify(step.send)}`);
      this.#client.send(step.send.replaceAll('$DIR', this.#daemon.dir));
      for (let i = 0; i < step.replies; i++) await this.until(isReply);
    } else {
      const { execute, arguments: args, id } = step;
      this.lines.push(
        `-> ${execute}${args === undefined ? '' : ` ${format(args)}`}${id === undefined ? '' : ` id ${format(id)}`}`,
      );
      this.#client.send(`${JSON.stringify(substitute(step, this.#daemon.dir))}\n`);
      await this.until(isReply, UNORDERED.has(execute));
    }
  }
}

/** A second daemon without a monitor, which only holds its nodes; ready when its pid file is there. */
async function startHolder(args: readonly string[], dir: string): Promise<{ stop(): Promise<ExitReport> }> {
  const holderDir = path.join(dir, 'holder');
  mkdirSync(holderDir, { recursive: true });
  const daemon = await startDaemon('qemu-storage-daemon', { args, dir: holderDir });
  const client = await daemon.connect();
  await client.negotiate(); // the monitor answers only when every option has been executed
  client.close();
  return daemon;
}

/** Runs a transcript against a daemon of the given kind and returns its record. */
export async function runTranscript(transcript: Transcript, kind: DaemonKind): Promise<string> {
  const daemon = await startDaemon(kind, {
    args: transcript.args ?? [],
    prepare: (dir) => makeFiles(transcript, dir),
  });
  let recorder: Recorder | null = null;
  try {
    const client = await daemon.connect();
    recorder = new Recorder(daemon, client);
    await recorder.until(() => true);
    if (transcript.negotiate !== false) await recorder.step({ execute: 'qmp_capabilities' });
    for (const step of transcript.steps) await recorder.step(step);
    client.close();
    return `${recorder.lines.join('\n')}\n`;
  } finally {
    await recorder?.release();
    if (transcript.cleanup !== undefined) {
      const [program = '', ...args] = substitute(transcript.cleanup, daemon.dir);
      spawnSync(program, args);
    }
    await daemon.stop();
  }
}
