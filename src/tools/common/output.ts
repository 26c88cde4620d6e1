/**
 * What a tool prints: standard output in pieces, messages on standard error with the program's name in front.
 *
 * Both are written with blocking calls: a tool's output is complete when its process ends, however it ends.
 */

import { writeSync } from 'node:fs';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoOf } from '../../errors/error.ts';

/** Standard output is collected up to this many characters. */
const COLLECT = 16 * 1024;
/** Wait before a descriptor that does not block is tried again. */
const RETRY_MS = 1;

export interface ToolOutput {
  readonly program: string;
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
    error: (error) => output.note(`${program}: ${describe(error)}\n`),
    warn: (message) => output.note(`${program}: warning: ${message}\n`),
  };
  return output;
}

function describe(error: unknown): string {
  if (typeof error === 'string') return error;
  if (error instanceof BlockError)
    return error.hint === undefined ? error.message : `${error.message}\n${error.hint}`;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text, 'utf8');
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
