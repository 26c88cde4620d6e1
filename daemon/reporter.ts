/**
 * Messages to whoever started the daemon, on standard error in the original's form: program name, the option that is
 * being executed, message; a hint on lines of its own.
 */

import { writeSync } from 'node:fs';
import { bytesOfText } from '../src/aio/host/names.ts';
import { BlockError, userText } from '../src/errors/error.ts';

export interface Reporter {
  /** The option being executed, as it was written; null between options and afterwards. */
  location: string | null;
  error(error: unknown): void;
  /** A message with its severity, such as "warning: ...". */
  message(text: string): void;
}

/** Writes at once: the process may be about to end. */
export function writeAll(fd: number, text: string): void {
  try {
    writeSync(fd, bytesOfText(text));
  } catch {
    // Closed, or a pipe that is full and does not block: there is nobody left to tell.
  }
}

/** A reporter for a program of this name. */
export function createReporter(program: string): Reporter {
  const reporter: Reporter = {
    location: null,
    message: (text) => {
      const location = reporter.location === null ? '' : `${reporter.location}: `;
      writeAll(2, `${program}: ${location}${text}\n`);
    },
    error: (error) => {
      if (error instanceof BlockError) {
        reporter.message(error.hint === undefined ? error.message : `${error.message}\n${error.hint}`);
      } else {
        reporter.message(userText(error, reporter.location ?? 'the daemon', "the daemon's log"));
      }
    },
  };
  return reporter;
}
