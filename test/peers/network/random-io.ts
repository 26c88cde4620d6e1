/** Reads and writes at random against a model: what every writable network driver is put through. */

import { expect } from 'vitest';
import { type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';

export interface RandomIo {
  readonly rounds: number;
  /** Zero writes too, with and without unmapping. */
  readonly zeroes?: boolean;
  /** Called in each round when its requests are under way. */
  readonly between?: (round: number) => void;
}

const AT_ONCE = 16;
const MAY_UNMAP = 2;
const SHORT_BYTES = 16 * 1024;

/**
 * Runs requests, 16 at a time in parts of their own, and compares what is read with `model`, which follows what is
 * written. Ends with a flush.
 */
export async function randomIo(
  { read, write, backend }: RemoteNode,
  model: Buffer,
  { rounds, zeroes = false, between = () => undefined }: RandomIo,
): Promise<void> {
  const slot = model.length / AT_ONCE;
  for (let round = 0; round < rounds; round++) {
    const all = Array.from({ length: AT_ONCE }, async (_, i) => {
      const bytes = 1 + Math.floor(Math.random() * (round % 4 === 0 ? slot - 1 : SHORT_BYTES));
      const offset = i * slot + Math.floor(Math.random() * (slot - bytes));
      const what = Math.random();
      if (what < 0.4) {
        const data = testPattern(bytes, round * AT_ONCE + i + 2);
        await write(offset, data);
        data.copy(model, offset);
      } else if (what < 0.5 && zeroes) {
        await backend.pwriteZeroes(offset, bytes, round % 2 === 0 ? MAY_UNMAP : 0);
        model.fill(0, offset, offset + bytes);
      } else expect((await read(offset, bytes)).equals(model.subarray(offset, offset + bytes))).toBe(true);
    });
    between(round);
    await Promise.all(all);
  }
  await backend.flush();
}
