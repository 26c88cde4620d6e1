/**
 * The log: structured lines by pino on standard error, readable ones when that is a terminal.
 *
 * Messages to the user who starts the daemon are not log lines: reporter.ts.
 */

import { pino } from 'pino';

/** The part of a pino logger that the daemon uses. */
export interface Logger {
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

const COLOURS: Readonly<Record<number, string>> = { 30: '32', 40: '33', 50: '31', 60: '31' };

/** One log line for a person: time, level, message, details. */
export function readableLine(json: string): string {
  const { level, time, msg, pid: _pid, hostname: _hostname, name: _name, ...details } = JSON.parse(json) as Record<
    string,
    unknown
  >;
  const clock = new Date(Number(time)).toTimeString().slice(0, 8);
  const label = (pino.levels.labels[Number(level)] ?? String(level)).toUpperCase().padEnd(5);
  const colour = COLOURS[Number(level)] ?? '2';
  const rest = Object.entries(details).map(
    ([key, value]) => ` ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return `${clock} \u001b[${colour}m${label}\u001b[0m ${String(msg)}\u001b[2m${rest.join('')}\u001b[0m\n`;
}

/** A logger on standard error. */
export function createLogger(level: LogLevel): Logger {
  if (!process.stderr.isTTY) return pino({ name: 'qblockd', level }, pino.destination({ fd: 2, sync: true }));
  return pino({ name: 'qblockd', level }, { write: (line) => void process.stderr.write(readableLine(line)) });
}
