/** A rate limit of a tool: bytes a second, spread evenly. */

import type { ToolOutput } from '../../common/output.ts';
import { readSize } from './command.ts';

export interface Pace {
  /** Resolves when `bytes` more may go. */
  wait(bytes: number): Promise<void>;
}

/** The value of -r. */
export function parseRate(output: ToolOutput, value: string): number {
  return readSize(output, 'rate limit', value);
}

/** `rate`: bytes a second; 0: no limit. */
export function createPace(rate: number): Pace {
  let freeAtMs = 0;
  return {
    async wait(bytes) {
      if (rate === 0) return;
      const now = performance.now();
      const waitMs = freeAtMs - now;
      freeAtMs = Math.max(now, freeAtMs) + (bytes / rate) * 1000;
      if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs));
    },
  };
}
