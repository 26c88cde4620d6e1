/**
 * Progress of a long command: "    (12.34/100%)" on one line of standard output with -p; without it, on standard error
 * whenever the process gets SIGUSR1.
 */

import { fixed } from '../../qmp/c-numbers.ts';
import type { ToolOutput } from './output.ts';

export interface Progress {
  /** Sets what is done, in percent. Small steps are not shown. */
  set(percent: number): void;
  /** Adds to what is done. */
  add(percent: number): void;
  /** Ends the line. */
  end(): void;
}

/** `stepPercent`: smallest step that is shown. */
export function createProgress(output: ToolOutput, enabled: boolean, stepPercent: number): Progress {
  let current = 0;
  let shown = 0;
  const text = (): string => `    (${fixed(current, 2)}/100%)`;
  const showOnSignal = (): void => output.note(`${text()}\n`);
  if (!enabled) process.on('SIGUSR1', showOnSignal);

  function show(isStep: boolean): void {
    if (!enabled || !isStep) return;
    shown = current;
    output.print(`${text()}\r`);
    output.flush();
  }

  return {
    set(percent) {
      current = Math.min(percent, 100);
      show(Math.abs(current - shown) > stepPercent || current === 0 || current === 100);
    },
    add(percent) {
      current = Math.min(current + percent, 100);
      show(Math.abs(current - shown) > stepPercent || percent === 0 || current === 0 || current === 100);
    },
    end() {
      if (enabled) output.print('\n');
      else process.off('SIGUSR1', showOnSignal);
    },
  };
}
