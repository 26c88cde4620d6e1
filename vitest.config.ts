import { defineConfig } from 'vitest/config';

// The ring is driven from the main thread's libuv loop, so tests run in processes, never in Worker threads.
export default defineConfig({
  test: {
    pool: 'forks',
    include: ['test/**/*.test.ts'],
    testTimeout: 180_000,
    hookTimeout: 60_000,
    maxWorkers: 2,
  },
});
