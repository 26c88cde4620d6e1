/**
 * Progress of a long command: "    (12.34/100%)" on one line of standard output with -p, a line of JSON for each step with
 * -p=json; and on standard error whenever the process gets SIGUSR1, asked for or not.
 */

import { fixed } from '../../qmp/c-numbers.ts';
import type { ToolOutput } from './output.ts';

/** What is shown without being asked for by a signal. */
export type ProgressMode = 'none' | 'line' | 'json';

export interface Progress {
  /** What is being done from now on, and how many bytes that is about; for JSON. */
  begin(phase: string, totalBytes: number): void;
  /** Each step is shown as the original shows it. */
  readonly isShown: boolean;
  /** Sets what is done, in percent. Small steps are not shown. */
  set(percent: number): void;
  /** Adds to what is done. */
  add(percent: number): void;
  /** Ends the line. */
  end(): void;
}

/** A line of JSON is printed at least so often while there is progress at all. */
const JSON_INTERVAL_MS = 1000;

/** What -p asks for (`value`: what is attached to it; null: it was not given), with -q beside it. */
export function progressMode(value: string | null, quiet: boolean): ProgressMode {
  if (value === null || quiet) return 'none';
  return value === 'json' ? 'json' : 'line';
}

/** `stepPercent`: smallest step that is shown. `aside`: standard output is taken, JSON goes to standard error. */
export function createProgress(
  output: ToolOutput,
  mode: ProgressMode,
  stepPercent: number,
  aside = false,
): Progress {
  let current = 0;
  let shown = 0;
  let phase = 'start';
  let totalBytes = 0;
  let phaseStartMs = performance.now();
  let lastLineMs = 0;
  const text = (): string => `    (${fixed(current, 2)}/100%)`;
  const record = (): string => {
    const done = Math.round((current / 100) * totalBytes);
    const seconds = (performance.now() - phaseStartMs) / 1000;
    const rate = seconds > 0 ? Math.round(done / seconds) : 0;
    const percent = Number(current.toFixed(2));
    return `${JSON.stringify({ phase, done, total: totalBytes, percent, 'bytes-per-second': rate })}\n`;
  };
  const showOnSignal = (): void => output.tell(mode === 'json' ? record() : `${text()}\n`);
  process.on('SIGUSR1', showOnSignal);

  function show(isStep: boolean): void {
    if (mode === 'none') return;
    const isDue = mode === 'json' && performance.now() - lastLineMs > JSON_INTERVAL_MS;
    if (!isStep && !isDue) return;
    // The end is told once.
    if (mode === 'json' && current === 100 && shown === 100) return;
    shown = current;
    lastLineMs = performance.now();
    if (mode === 'json' && aside) output.tell(record());
    else output.print(mode === 'json' ? record() : `${text()}\r`);
    output.flush();
  }

  return {
    begin(name, bytes) {
      phase = name;
      totalBytes = bytes;
      phaseStartMs = performance.now();
    },
    isShown: mode === 'line',
    set(percent) {
      current = Math.min(percent, 100);
      show(Math.abs(current - shown) > stepPercent || current === 0 || current === 100);
    },
    add(percent) {
      current = Math.min(current + percent, 100);
      show(Math.abs(current - shown) > stepPercent || percent === 0 || current === 0 || current === 100);
    },
    end() {
      if (mode === 'line') output.print('\n');
      process.off('SIGUSR1', showOnSignal);
    },
  };
}
