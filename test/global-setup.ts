/** Before all test files: sees to it that nothing outlives the run, also when it is killed. */

import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import path from 'node:path';

/** In the environment of everything that the tests start. */
const RUN = 'QBLOCKD_TEST_RUN';

export function setup(): void {
  process.env[RUN] = randomUUID();
  const { [RUN]: run, ...env } = process.env;
  const reaper = spawn(path.join(import.meta.dirname, 'reaper.sh'), [`${RUN}=${run}`], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
    env,
  });
  // The reaper ends the run's processes when its input ends, which is when this process does.
  reaper.unref();
  (reaper.stdin as unknown as { unref(): void }).unref();
}
