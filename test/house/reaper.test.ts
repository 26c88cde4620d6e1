/** What a killed run of tests leaves behind is ended by reaper.sh. */

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { waitUntil } from '../patience.ts';

const REAPER = path.resolve(import.meta.dirname, '../reaper.sh');

test("the run's processes end with the run, others do not", async () => {
  const mark = `REAPER_TEST=${process.pid}`;
  const [name = '', value] = mark.split('=');
  const left = spawn('sleep', ['600'], { env: { ...process.env, [name]: value }, stdio: 'ignore' });
  const other = spawn('sleep', ['600'], { env: { ...process.env, [name]: `${value}0` }, stdio: 'ignore' });
  const reaper = spawn(REAPER, [mark], { stdio: ['pipe', 'ignore', 'ignore'] });
  try {
    reaper.stdin.end();
    await waitUntil('the end of what was left', () => left.signalCode !== null);
    expect(existsSync(`/proc/${other.pid}`)).toBe(true);
    expect(other.signalCode).toBeNull();
  } finally {
    left.kill('SIGKILL');
    other.kill('SIGKILL');
    reaper.kill('SIGKILL');
  }
});
