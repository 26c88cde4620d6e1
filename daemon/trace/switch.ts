/**
 * Which trace events are on, and where they go: the option `--trace [enable=]PATTERN,events=FILE,file=FILE`.
 *
 * A file of events has a pattern a line; "#" begins a comment, "-" in front of a pattern switches off. Lines go to
 * standard error unless a file is named.
 */

import { openSync, readFileSync, writeSync } from 'node:fs';
import { INTROSPECTION } from '../../schema/generated/introspection.ts';
import { errnoError, errnoOf } from '../../src/errors/error.ts';
import { parseOptions } from '../arguments/qemu-opts.ts';
import { commandEvents, EVENTS, fits, type Trace } from './events.ts';

/** Events as the options so far have switched them. */
export interface TraceSwitch extends Trace {
  readonly enabled: Set<string>;
  fd: number;
}

/** Every event by name, sorted. */
export function allEvents(): string[] {
  const commands = INTROSPECTION.filter((entity) => entity['meta-type'] === 'command');
  return [...EVENTS, ...commands.flatMap(({ name }) => commandEvents(name))].sort();
}

export function createTrace(): TraceSwitch {
  const trace: TraceSwitch = {
    enabled: new Set(),
    fd: 2,
    write(event, text) {
      try {
        writeSync(trace.fd, `${event} ${text}\n`);
      } catch {
        // A full disk, or nobody reads standard error any more: the work goes on.
      }
    },
  };
  return trace;
}

/** Switches what a pattern means. False: it names a single event that does not exist. */
function apply(trace: TraceSwitch, given: string): boolean {
  const isOff = given.startsWith('-');
  const pattern = isOff ? given.slice(1) : given;
  const names = allEvents().filter((name) => fits(pattern, name));
  for (const name of names) {
    if (isOff) trace.enabled.delete(name);
    else trace.enabled.add(name);
  }
  return names.length > 0 || /[*?]/.test(pattern);
}

/** Reads the option. 'help': the list of events was asked for. */
export function applyTraceOption(
  value: string,
  trace: TraceSwitch,
  tell: (text: string) => void,
): 'help' | 'applied' {
  const types = { enable: 'str', events: 'str', file: 'str' } as const;
  if (value === 'help' || value === '?') return 'help';
  const { values, help } = parseOptions(value, types, 'enable', tell);
  if (help) return 'help';
  const patterns: string[] = [];
  const enable = values.get('enable');
  if (enable === 'help') return 'help';
  if (typeof enable === 'string') patterns.push(enable);
  const events = values.get('events');
  if (typeof events === 'string') patterns.push(...readPatterns(events));
  for (const pattern of patterns)
    if (!apply(trace, pattern)) tell(`warning: trace event '${pattern}' does not exist`);
  const file = values.get('file');
  if (typeof file === 'string') trace.fd = openTraceFile(file);
  return 'applied';
}

function readPatterns(file: string): string[] {
  try {
    return readFileSync(file, 'utf8')
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '' && !line.startsWith('#'));
  } catch (error) {
    throw errnoError(`Could not open trace events file '${file}'`, errnoOf(error));
  }
}

function openTraceFile(file: string): number {
  try {
    return openSync(file, 'a', 0o600);
  } catch (error) {
    throw errnoError(`Could not open trace file '${file}'`, errnoOf(error));
  }
}

/** Arguments of a command as a trace shows them: without what secrets are made of. */
export function shownArguments(command: string, args: unknown): string {
  const hidden = command === 'object-add' ? ['data', 'password'] : [];
  return JSON.stringify(args ?? {}, (key, member: unknown) => {
    if (hidden.includes(key) || /password|secret-access-key|session-token|cookie$/.test(key))
      return typeof member === 'string' && !key.endsWith('-secret') ? '***' : member;
    return typeof member === 'bigint' ? Number(member) : member;
  });
}
