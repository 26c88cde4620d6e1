/**
 * Images whose headers claim far more than their files hold (claims/make.py): whatever is done with them takes memory and
 * time for what is there, not for what is claimed. An error is as good as success.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { requirePeer } from '../../peers/requires.ts';
import { TOOLS } from '../../peers/tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-claims-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What the tool takes anyway, and half as much again. */
const MAX_RESIDENT_MIB = 250;
const HANGS_MS = 60_000;

/** Runs the rest of the command line; prints the exit status and the most memory it took, in MiB. */
const MEASURE = `
import os, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
`;

function measure(args: readonly string[]): { readonly status: number; readonly mib: number } | 'hangs' {
  const { stdout, error } = spawnSync('/usr/bin/python3', ['-c', MEASURE, TOOLS.img.ours, ...args], {
    cwd: folder,
    encoding: 'utf8',
    timeout: limitMs(HANGS_MS),
    killSignal: 'SIGKILL',
  });
  if (error !== undefined) return 'hangs';
  const [status = -1, mib = 0] = stdout.trim().split(' ').map(Number);
  return { status, mib };
}

test(
  'claims of a header take no memory',
  (context) => {
    requirePeer(context, 'qemu-img');
    execFileSync('/usr/bin/python3', [path.join(import.meta.dirname, 'claims/make.py'), folder]);
    const images = readdirSync(folder).filter((name) => name.includes('.'));
    expect(images.length).toBeGreaterThan(40);
    for (const name of images) {
      const format = path.extname(name).slice(1);
      const isSparse = name.includes('-sparse');
      const commands = [['dd', '-f', format, '-O', 'raw', 'bs=1M', 'count=1', `if=${name}`, 'of=out']];
      // The check of a table of gigabytes takes its time, even if it is empty.
      if (!isSparse) commands.push(['check', '-f', format, name]);
      for (const command of commands) {
        const outcome = measure(command);
        expect({ command, outcome }).not.toEqual({ command, outcome: 'hangs' });
        if (outcome === 'hangs') continue;
        // A signal, or a status that no tool gives, would be a crash.
        expect([0, 1, 2, 3, 63]).toContain(outcome.status);
        expect({ command, tooMuch: outcome.mib > MAX_RESIDENT_MIB ? outcome.mib : 0 }).toEqual({
          command,
          tooMuch: 0,
        });
      }
    }
  },
  limitMs(240_000),
);
