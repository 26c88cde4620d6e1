/**
 * What a tool prints: standard output in pieces, messages on standard error with the program's name in front.
 *
 * Both are written with blocking calls: a tool's output is complete when its process ends, however it ends.
 */

import { writeSync } from 'node:fs';
import { bytesOfText } from '../../aio/host/names.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoOf, userText } from '../../errors/error.ts';

/** Standard output is collected up to this many characters. */
const COLLECT = 16 * 1024;
/** Wait before a descriptor that does not block is tried again. */
const RETRY_MS = 1;

export interface ToolOutput {
  readonly program: string;
  /** The command that runs, for errors that nobody has foreseen. */
  command: string;
  /** Adds to standard output. */
  print(text: string): void;
  /** Sends what was printed on its way. */
  flush(): void;
  /** "PROGRAM: MESSAGE", and a hint on lines of its own. */
  error(error: unknown): void;
  /** "PROGRAM: warning: MESSAGE". */
  warn(message: string): void;
  /** Adds to standard error as it is. */
  note(text: string): void;
}

export function createToolOutput(program: string): ToolOutput {
  let collected = '';
  const output: ToolOutput = {
    program,
    command: program,
    print(text) {
      collected += text;
      if (collected.length > COLLECT) output.flush();
    },
    flush() {
      if (collected !== '') writeAll(1, collected);
      collected = '';
    },
    note(text) {
      output.flush();
      writeAll(2, text);
    },
    error: (error) => output.note(`${program}: ${describe(error, output.command)}\n`),
    warn: (message) => output.note(`${program}: warning: ${message}\n`),
  };
  return output;
}

/** With this in the environment, errors that nobody has foreseen are printed with the place in the program. */
const DEBUG = process.env.QBLOCKD_LOG === 'debug';

function describe(error: unknown, command: string): string {
  if (typeof error === 'string') return error;
  if (error instanceof BlockError)
    return error.hint === undefined ? error.message : `${error.message}\n${error.hint}`;
  const text = userText(error, `'${command}'`, 'what it prints with QBLOCKD_LOG=debug');
  return DEBUG && error instanceof Error ? `${text}\n${error.stack}` : text;
}

function writeAll(fd: number, text: string): void {
  const bytes = bytesOfText(text);
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      // Anything else means that nobody listens any more.
      if (errnoOf(error) !== E.EAGAIN) return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
}
