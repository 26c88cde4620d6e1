/**
 * qblock-shell: QMP by hand. Commands are typed as `blockdev-add driver=null-co node-name=n size=1048576`; answers and
 * events are shown as they come. With -c it runs commands and ends, for scripts.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { type Client, connect, QmpError } from '../../../client/node.ts';
import { type Completer, createCompleter } from '../../../client/prompt/completion.ts';
import { LineError, parseLine, type TypedCommand } from '../../../client/prompt/words.ts';
import { PACKAGE_VERSION } from '../../qmp/version.ts';
import { commandHelp } from '../common/command-table.ts';
import { createGetopt } from '../common/getopt.ts';
import { createToolOutput, foreseeErrorFormat, setErrorFormat, type ToolOutput } from '../common/output.ts';
import { helpAskedFor, helpText } from './help.ts';
import { PROGRAM } from './table.ts';

const HISTORY_LINES = 1000;
/** A character device serves one client at a time: the next one waits. */
const GREETING_MS = 10_000;

interface Shell {
  readonly client: Client;
  readonly output: ToolOutput;
  readonly pretty: boolean;
  readonly verbose: boolean;
  /** Actions typed so far; null: no transaction is being typed. */
  actions: unknown[] | null;
  readonly completer: Completer;
}

function print(shell: Shell, value: unknown): void {
  shell.output.print(`${JSON.stringify(value, null, shell.pretty ? 2 : undefined)}\n`);
  shell.output.flush();
}

/** Runs one line; false: it failed, and that has been said. */
async function runLine(shell: Shell, line: string): Promise<boolean> {
  try {
    const text = line.trim();
    const topic = helpAskedFor(text);
    if (topic !== null) {
      shell.output.print(await helpText(shell.completer, topic));
      shell.output.flush();
      return true;
    }
    if (text === 'transaction(') {
      if (shell.actions !== null) throw new LineError('A transaction is being typed already');
      shell.actions = [];
      return true;
    }
    if (text === ')' && shell.actions !== null) {
      const actions = shell.actions;
      shell.actions = null;
      return await execute(shell, { name: 'transaction', args: { actions } });
    }
    const command = parseLine(text);
    if (command === null) return true;
    if (shell.actions === null) return await execute(shell, command);
    shell.actions.push({ type: command.name, data: command.args });
    return true;
  } catch (error) {
    if (!(error instanceof LineError)) throw error;
    shell.output.error(error.message);
    return false;
  }
}

async function execute(shell: Shell, { name, args }: TypedCommand): Promise<boolean> {
  if (shell.verbose) print(shell, { execute: name, arguments: args });
  try {
    const result = await shell.client.execute(
      name as never,
      (Object.keys(args).length > 0 ? args : undefined) as never,
    );
    print(shell, { return: result });
    return true;
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    print(shell, { error: { class: error.errorClass, desc: error.message } });
    return false;
  }
}

/** Shows events above the line that is being typed. */
async function showEvents(shell: Shell, terminal: Interface | null): Promise<void> {
  for await (const { name, data, timeMs } of shell.client.events()) {
    if (terminal !== null) shell.output.print('\r\u001b[K');
    const seconds = Math.floor(timeMs / 1000);
    const microseconds = Math.round((timeMs - seconds * 1000) * 1000);
    print(shell, { timestamp: { seconds, microseconds }, event: name, data });
    terminal?.prompt(true);
  }
}

function historyFile(): string {
  return path.join(process.env.XDG_STATE_HOME ?? homedir(), '.qblock-shell_history');
}

async function interact(shell: Shell, events: boolean): Promise<boolean> {
  const isTerminal = process.stdin.isTTY === true;
  const file = historyFile();
  const history =
    isTerminal && existsSync(file)
      ? readFileSync(file, 'utf8').trim().split('\n').slice(-HISTORY_LINES).reverse()
      : [];
  const terminal = createInterface({
    input: process.stdin,
    ...(isTerminal && { output: process.stdout }),
    terminal: isTerminal,
    history,
    historySize: HISTORY_LINES,
    completer: (line: string, done: (error: null, result: [string[], string]) => void) => {
      shell.completer.complete(line).then(([found, begun]) => done(null, [[...found], begun]));
    },
  });
  if (isTerminal) {
    const { qemu } = shell.client.greeting.version;
    shell.output.print(
      `Connected to QMP ${qemu.major}.${qemu.minor}.${qemu.micro} (${shell.client.greeting.version.package})\n`,
    );
    shell.output.flush();
  }
  if (events) showEvents(shell, isTerminal ? terminal : null).catch(() => undefined);
  let good = true;
  const prompt = (): void => {
    terminal.setPrompt(shell.actions === null ? '(QMP) ' : 'TRANS> ');
    if (isTerminal) terminal.prompt();
  };
  prompt();
  for await (const line of terminal) {
    if (['exit', 'quit()', 'q'].includes(line.trim())) break;
    if (isTerminal && line.trim() !== '') {
      try {
        appendFileSync(file, `${line}\n`, { mode: 0o600 });
      } catch {
        // Without a place for it there is no history.
      }
    }
    good = (await runLine(shell, line)) && good;
    prompt();
  }
  terminal.close();
  return good || isTerminal;
}

/** "HOST:PORT" without a scheme is TCP, as the original's shell has it. */
function addressOf(text: string): string {
  return /^[^/:]*:\d+$/.test(text) && !text.startsWith('unix:') ? `tcp:${text}` : text;
}

interface Wrapped {
  readonly address: string;
  readonly end: () => Promise<void>;
}

/** Starts the program with a QMP socket of its own. */
async function wrap(words: readonly string[]): Promise<Wrapped> {
  const [program, ...args] = words;
  if (program === undefined) throw new LineError('-w needs the program to start');
  const dir = mkdtempSync(path.join(tmpdir(), 'qblock-shell-'));
  const socket = path.join(dir, 'qmp');
  const child: ChildProcess = spawn(program, [...args, '--qmp', `unix:${socket}`], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const exited = new Promise<void>((resolve) => {
    child.on('exit', () => resolve());
    child.on('error', () => resolve());
  });
  const end = async (): Promise<void> => {
    child.kill('SIGTERM');
    await exited;
    rmSync(dir, { recursive: true, force: true });
  };
  while (!existsSync(socket)) {
    const ended = await Promise.race([
      exited.then(() => true),
      new Promise((resolve) => setTimeout(resolve, 20)),
    ]);
    if (ended === true) {
      rmSync(dir, { recursive: true, force: true });
      throw new LineError(`${program} ended before it could be spoken to`);
    }
  }
  return { address: `unix:${socket}`, end };
}

async function run(output: ToolOutput, words: readonly string[]): Promise<number> {
  const flags = new Set<string>();
  const lines: string[] = [];
  const getopt = createGetopt(words, PROGRAM.options, { program: output.program, stopAtOperand: true });
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error')
      throw new LineError(`${item.message}\nTry '${output.program} --help' for more information`);
    if (item.name === 'errorFormat') setErrorFormat(output, item.value);
    if (item.name === 'command') lines.push(item.value);
    else flags.add(item.name);
  }
  if (flags.has('help') || flags.has('version')) {
    output.print(
      flags.has('help')
        ? commandHelp(output.program, PROGRAM)
        : `${output.program} version ${PACKAGE_VERSION}\n`,
    );
    return 0;
  }
  if (flags.has('hmp')) throw new LineError('There is no human monitor: speak QMP');
  const [first] = getopt.operands;
  if (first === undefined || (!flags.has('wrap') && getopt.operands.length > 1))
    throw new LineError(`Expecting one address\nTry '${output.program} --help' for more information`);
  const wrapped = flags.has('wrap') ? await wrap(getopt.operands) : null;
  let good = true;
  try {
    const greeting = AbortSignal.timeout(GREETING_MS);
    const client = await connect(wrapped?.address ?? addressOf(first), { signal: greeting }).catch(
      (error: Error) => {
        throw greeting.aborted
          ? new LineError(`${first} does not greet: is there another client, or no QMP?`)
          : error;
      },
    );
    const shell: Shell = {
      client,
      output,
      pretty: flags.has('pretty'),
      verbose: flags.has('verbose'),
      actions: null,
      completer: createCompleter(client),
    };
    if (lines.length === 0) good = await interact(shell, !flags.has('noEvents'));
    for (const line of lines) {
      good = await runLine(shell, line);
      if (!good) break;
    }
    await client.close();
  } finally {
    await wrapped?.end();
  }
  return good ? 0 : 1;
}

async function main(): Promise<void> {
  const output = createToolOutput(path.basename(process.argv[1] ?? 'qblock-shell'));
  let status: number;
  try {
    foreseeErrorFormat(output, process.argv.slice(2));
    status = await run(output, process.argv.slice(2));
  } catch (error) {
    output.error(error instanceof Error ? error.message : String(error));
    status = 1;
  }
  output.flush();
  process.exit(status);
}

void main();
