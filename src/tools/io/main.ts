/** qblock-io: exercises an image by commands, from -c or from standard input. */

import { textOfBytes } from '../../aio/host/names.ts';
import { BlockError } from '../../errors/error.ts';
import type { ToolEnvironment } from '../common/environment.ts';
import type { ToolOutput } from '../common/output.ts';
import { runProgram } from '../common/program.ts';
import { readCommandLine } from './command-line.ts';
import { findCommand, oneLine } from './commands.ts';
import { openPrinting } from './image.ts';
import { refuse } from './manage.ts';
import { aioFlush } from './requests.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';

/** Commands that need a writable image; said before their arguments are looked at. */
const WRITERS: ReadonlySet<string> = new Set(['write', 'writev', 'aio_write', 'discard', 'truncate']);
/** Longest line of input, in bytes. */
const MAX_LINE_BYTES = 1024 * 1024;
const LINE_FEED = 0x0a;

/** Runs one line; what is wrong with it is printed and makes the exit status 1. */
async function runLine(session: IoSession, line: string): Promise<void> {
  const [name, ...words] = line.split(' ').filter((word) => word !== '');
  if (name === undefined) return;
  const { output } = session.env;
  const command = findCommand(name);
  output.command = name;
  try {
    if (command === undefined) {
      output.note(`command "${name}" not found\n`);
      throw new CommandFailed();
    }
    if (command.needsImage && session.image === null) {
      output.note("no file open, try 'help open'\n");
      throw new CommandFailed();
    }
    checkCount(session, name, words.length, command.minWords, command.maxWords);
    if (WRITERS.has(command.name) && session.image?.node.readOnly === true)
      refuse(session, 'Block node is read-only');
    await command.run(session, words);
  } catch (error) {
    session.failed = true;
    if (error instanceof UsageProblem && command !== undefined) output.print(oneLine(command));
    else if (!(error instanceof CommandFailed)) output.error(error);
  }
}

function checkCount({ env }: IoSession, name: string, count: number, min: number, max: number): void {
  if (count >= min && (max === -1 || count <= max)) return;
  const expected =
    max === -1
      ? `at least ${min} arguments`
      : min === max
        ? `${min} arguments`
        : `between ${min} and ${max} arguments`;
  env.output.note(`bad argument count ${count} to ${name}, expected ${expected}\n`);
  throw new CommandFailed();
}

/** Lines of standard input; only a line feed ends one. */
async function* inputLines(): AsyncGenerator<string> {
  let parts: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    let start = 0;
    for (let at = chunk.indexOf(LINE_FEED); at >= 0; at = chunk.indexOf(LINE_FEED, start)) {
      yield textOfBytes(Buffer.concat([...parts, chunk.subarray(start, at)]));
      parts = [];
      bytes = 0;
      start = at + 1;
    }
    parts.push(chunk.subarray(start));
    bytes += chunk.length - start;
    if (bytes > MAX_LINE_BYTES) throw new BlockError('input line too long');
  }
  if (bytes > 0) yield textOfBytes(Buffer.concat(parts));
}

async function runInput(session: IoSession): Promise<void> {
  const { output } = session.env;
  const prompt = (): void => {
    output.print(`${output.program}> `);
    output.flush();
  };
  prompt();
  for await (const line of inputLines()) {
    await runLine(session, line);
    if (session.ended) break;
    prompt();
  }
}

async function runCommands(session: IoSession, commands: readonly string[]): Promise<void> {
  if (commands.length === 0) await runInput(session);
  for (const command of commands) {
    if (session.ended) break;
    await runLine(session, command);
  }
  await aioFlush(session);
  await session.image?.close();
}

async function run(env: ToolEnvironment, words: readonly string[]): Promise<number> {
  const invocation = await readCommandLine(env, words);
  if (invocation.kind === 'end') return invocation.status;
  const { commands, image, misalign } = invocation;
  const session: IoSession = {
    env,
    image: null,
    opened: null,
    misalign,
    pending: new Set(),
    failed: false,
    ended: false,
  };
  try {
    if (image !== null) await openPrinting(session, image);
  } catch (error) {
    if (error instanceof CommandFailed) return 1;
    throw error;
  }
  await runCommands(session, commands);
  return session.failed ? 1 : 0;
}

function failureStatus(error: unknown, output: ToolOutput): number {
  output.error(error);
  return 1;
}

void runProgram('qblock-io', (words, _output, environment) => run(environment(), words), failureStatus);
