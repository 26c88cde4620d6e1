/**
 * A probe for tests: which turns of the event loop took long. With QBLOCKD_TURN_PROBE=FILE a line with the milliseconds
 * of each turn above a few goes into FILE.
 *
 * What counts is the processor time of the main thread, not the time of the day: a machine that is busy with something
 * else makes no turn longer.
 */

import { appendFileSync } from 'node:fs';
import { threadCpuMs } from '../src/aio/ffi.ts';
import { hostPath } from '../src/aio/host/names.ts';

const LOOK_MS = 1;
/** Shorter turns are nobody's business. */
const REPORT_MS = 10;

/** Starts the probe if the environment asks for it. */
export function startTurnProbe(file: string | undefined): void {
  if (file === undefined || file === '') return;
  let last = threadCpuMs();
  setInterval(() => {
    const now = threadCpuMs();
    const turnMs = now - last;
    if (turnMs >= REPORT_MS) appendFileSync(hostPath(file), `${turnMs.toFixed(1)}\n`);
    // Writing that down does not count.
    last = threadCpuMs();
  }, LOOK_MS).unref();
}
