/**
 * What a tool prints: standard output in pieces, messages on standard error with the program's name in front, or as a
 * line of JSON each (--error-format json).
 *
 * Both are written with blocking calls: a tool's output is complete when its process ends, however it ends.
 */

import { writeSync } from 'node:fs';
import { bytesOfText } from '../../aio/host/names.ts';
import { E, errnoName, strerror } from '../../errors/errno.ts';
import { BlockError, errnoOf, userText } from '../../errors/error.ts';

/** Standard output is collected up to this many characters. */
const COLLECT = 16 * 1024;
/** Wait before a descriptor that does not block is tried again. */
const RETRY_MS = 1;

export type ErrorFormat = 'human' | 'json';

export interface ToolOutput {
  readonly program: string;
  /** The command that runs, for errors that nobody has foreseen. */
  command: string;
  errorFormat: ErrorFormat;
  /** Adds to standard output. */
  print(text: string): void;
  /** Sends what was printed on its way. */
  flush(): void;
  /** "PROGRAM: MESSAGE", and a hint on lines of its own. */
  error(error: unknown): void;
  /** "PROGRAM: warning: MESSAGE". */
  warn(message: string): void;
  /** Adds to standard error as it is, but for JSON, where it becomes a line of its own. */
  note(text: string): void;
  /** Adds to standard error as it is. */
  tell(text: string): void;
  /** Why part of standard output could not be written, as an errno; 0: all of it could, or nobody wanted it. */
  lost(): number;
}

export function createToolOutput(program: string): ToolOutput {
  let collected = '';
  let lost = 0;
  const isJson = (): boolean => output.errorFormat === 'json';
  const line = (record: object): void => output.tell(`${JSON.stringify(record)}\n`);
  const output: ToolOutput = {
    program,
    command: program,
    errorFormat: 'human',
    print(text) {
      collected += text;
      if (collected.length > COLLECT) output.flush();
    },
    flush() {
      if (collected !== '') lost ||= writeAll(1, collected);
      collected = '';
    },
    tell(text) {
      output.flush();
      writeAll(2, text);
    },
    note: (text) => (isJson() ? line({ note: text.trimEnd() }) : output.tell(text)),
    error: (error) =>
      isJson()
        ? line({ error: errorRecord(error, output.command) })
        : output.tell(`${program}: ${describe(error, output.command)}\n`),
    warn: (message) =>
      isJson() ? line({ warning: message }) : output.tell(`${program}: warning: ${message}\n`),
    lost: () => lost,
  };
  return output;
}

/** The value of --error-format. */
export function setErrorFormat(output: ToolOutput, value: string): void {
  if (value !== 'human' && value !== 'json')
    throw new BlockError('--error-format must be used with human or json as argument.');
  output.errorFormat = value;
}

/** Errors of the command line itself are told in the format that it asks for, wherever it does. */
export function foreseeErrorFormat(output: ToolOutput, words: readonly string[]): void {
  const end = words.indexOf('--');
  const options = end < 0 ? words : words.slice(0, end);
  const isAsked = options.some(
    (word, index) =>
      word === '--error-format=json' || (word === '--error-format' && options[index + 1] === 'json'),
  );
  if (isAsked) output.errorFormat = 'json';
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

interface ErrorRecord {
  /** The first line of what is printed otherwise. */
  readonly desc: string;
  /** The other lines. */
  readonly hint?: string;
  /** The system's name of the reason, such as ENOENT, where there is one. */
  readonly errno?: string;
}

function errorRecord(error: unknown, command: string): ErrorRecord {
  const [desc = '', ...rest] = describe(error, command).split('\n');
  const errno = typeof error === 'string' ? 0 : errnoOf(error);
  // An error without a reason of the system's counts as EIO.
  const isKnown = errno !== 0 && (errno !== E.EIO || desc.includes(strerror(E.EIO)));
  return {
    desc,
    ...(rest.length > 0 && { hint: rest.join('\n') }),
    ...(isKnown && { errno: errnoName(errno) }),
  };
}

/** Returns 0, or the errno that stopped it; nobody listening is no failure. */
function writeAll(fd: number, text: string): number {
  const bytes = bytesOfText(text);
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== E.EAGAIN) return errno === E.EPIPE || errno === E.EBADF ? 0 : errno;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
  return 0;
}
