import { defineConfig } from 'vitest/config';
import { limitMs } from './test/patience.ts';

/** The last resort: what waits in a test has a limit of its own, which says what did not come. */
const LAST_RESORT_MS = 900_000;

// The ring is driven from the main thread's libuv loop, so tests run in processes, never in Worker threads.
export default defineConfig({
  test: {
    pool: 'forks',
    include: ['test/**/*.test.ts'],
    globalSetup: 'test/global-setup.ts',
    testTimeout: limitMs(LAST_RESORT_MS),
    hookTimeout: limitMs(LAST_RESORT_MS),
    maxWorkers: 2,
  },
});
