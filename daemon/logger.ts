/**
 * The log: structured lines by pino on standard error or in a file, readable ones when that is a terminal.
 *
 * Messages to the user who starts the daemon are not log lines: reporter.ts.
 */

import { openSync } from 'node:fs';
import { createRequire } from 'node:module';
import type * as Pino from 'pino';
import { errnoError, errnoOf } from '../src/errors/error.ts';

/** The part of a pino logger that the daemon uses. */
export interface Logger {
  debug(details: object, message: string): void;
  info(details: object, message: string): void;
  warn(details: object, message: string): void;
  error(details: object, message: string): void;
}

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Whether `text` names a level. */
export function isLogLevel(text: string): text is LogLevel {
  return LOG_LEVELS.some((level) => level === text);
}

/** Whether lines of this severity are written at this level. */
function isLogged(line: LogLevel, level: LogLevel): boolean {
  return LOG_LEVELS.indexOf(line) >= LOG_LEVELS.indexOf(level);
}

const COLOURS: Readonly<Record<number, string>> = { 30: '32', 40: '33', 50: '31', 60: '31' };
const LABELS: Readonly<Record<number, string>> = {
  10: 'TRACE',
  20: 'DEBUG',
  30: 'INFO',
  40: 'WARN',
  50: 'ERROR',
  60: 'FATAL',
};

/** One log line for a person: time, level, message, details. */
export function readableLine(json: string, coloured = true): string {
  const line = JSON.parse(json) as Record<string, unknown>;
  const { level, time, msg, pid: _pid, hostname: _hostname, name: _name, ...details } = line;
  const clock = new Date(Number(time)).toTimeString().slice(0, 8);
  const label = (LABELS[Number(level)] ?? String(level)).padEnd(5);
  const colour = COLOURS[Number(level)] ?? '2';
  const rest = Object.entries(details).map(
    ([key, value]) => ` ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  if (!coloured) return `${clock} ${label} ${String(msg)}${rest.join('')}\n`;
  return `${clock} \u001b[${colour}m${label}\u001b[0m ${String(msg)}\u001b[2m${rest.join('')}\u001b[0m\n`;
}

function createPino(level: LogLevel, fd: number): Logger {
  const { pino } = createRequire(import.meta.url)('pino') as typeof Pino;
  if (fd !== 2 || !process.stderr.isTTY)
    return pino({ name: 'qblockd', level }, pino.destination({ fd, sync: true }));
  // https://no-color.org: set and not empty.
  const coloured = (process.env.NO_COLOR ?? '') === '';
  return pino(
    { name: 'qblockd', level },
    { write: (line) => void process.stderr.write(readableLine(line, coloured)) },
  );
}

/** Opens a log file to add lines to; nobody else may read it. */
export function openLogFile(name: string): number {
  try {
    return openSync(name, 'a', 0o600);
  } catch (error) {
    throw errnoError(`Could not open log file '${name}'`, errnoOf(error));
  }
}

/**
 * A logger on a descriptor: standard error, or a log file. Most runs log nothing, so pino is loaded with the first
 * line that is not filtered.
 */
export function createLogger(level: LogLevel, fd = 2): Logger {
  let loaded: Logger | null = null;
  const log = (lineLevel: keyof Logger, details: object, message: string): void => {
    if (!isLogged(lineLevel, level)) return;
    loaded ??= createPino(level, fd);
    loaded[lineLevel](details, message);
  };
  return {
    debug: (details, message) => log('debug', details, message),
    info: (details, message) => log('info', details, message),
    warn: (details, message) => log('warn', details, message),
    error: (details, message) => log('error', details, message),
  };
}
