/**
 * Servers that die with requests under way, and come back: each driver against its own. Whatever happens to a server, the
 * daemon lives, other nodes notice nothing, what is read afterwards is right, and `quit` is quick.
 */

import { execFile, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testPattern } from '../../drivers/network/remote-node.ts';
import { limitMs } from '../../patience.ts';
import { makeScratchDir, startDaemon } from '../daemons.ts';
import { requirePeer } from '../requires.ts';
import { NETWORK_KINDS, type NetworkKind } from './servers/kinds.ts';

const run = promisify(execFile);
const MiB = 1024 * 1024;
const ENDS_IN_MS = 5000;
const DATA = testPattern(16 * MiB, 5);
let dir: string;

beforeAll(() => {
  dir = makeScratchDir();
  writeFileSync(path.join(dir, 'local'), DATA);
});

afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

/** Copies an export until told to stop; how many copies were whole. */
function copyAgainAndAgain(uri: string): { stop(): Promise<number> } {
  let stopped = false;
  let done = 0;
  const running = (async () => {
    while (!stopped) {
      const ended = await run('nbdcopy', [uri, 'null:']).then(
        () => true,
        () => false,
      );
      if (ended) done++;
      // An error that comes at once is not to keep the machine busy.
      else await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  return {
    async stop() {
      stopped = true;
      await running;
      return done;
    },
  };
}

for (const [driver, kind] of Object.entries(NETWORK_KINDS) as [string, NetworkKind][])
  test(`${driver}: the server is killed with requests under way, and started again`, async (context) => {
    requirePeer(context, ...kind.needs, 'nbdcopy');
    const folder = path.join(dir, driver);
    mkdirSync(folder);
    const server = await kind.start(folder);
    const daemon = await startDaemon('qblockd', { args: [...(kind.args ?? [])] });
    try {
      const options = await server.make('disk', DATA);
      const client = await daemon.connect();
      await client.negotiate();
      // The libraries' caches would answer for a server that has gone.
      const direct = { cache: { direct: true }, 'read-only': true };
      await client.execute('blockdev-add', { 'node-name': 'remote', ...options, ...direct });
      const file = { driver: 'file', filename: path.join(dir, 'local') };
      await client.execute('blockdev-add', { 'node-name': 'local', ...file, 'read-only': true });
      const socket = path.join(daemon.dir, 'nbd');
      await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
      for (const id of ['remote', 'local'])
        await client.execute('block-export-add', { type: 'nbd', id, 'node-name': id });
      const uri = (id: string): string => `nbd+unix:///${id}?socket=${socket}`;
      for (let round = 0; round < 2; round++) {
        const remote = copyAgainAndAgain(uri('remote'));
        await new Promise((resolve) => setTimeout(resolve, 150 + round * 100));
        await server.kill();
        // With the server away the local node and the monitor answer as ever.
        await run('nbdcopy', [uri('local'), 'null:']);
        await client.execute('query-block-exports');
        await server.start();
        await remote.stop();
        // What failed meanwhile has failed; from now on it is all there again.
        await wholeAgain(uri('remote'), path.join(folder, 'copy'));
      }
      expect(readFileSync(path.join(folder, 'copy')).equals(DATA)).toBe(true);
      // And once more, for good.
      const hanging = spawn('nbdcopy', [uri('remote'), 'null:'], { stdio: 'ignore' });
      await new Promise((resolve) => setTimeout(resolve, 50));
      await server.end();
      await run('nbdcopy', [uri('local'), 'null:']);
      const began = performance.now();
      client.send('{"execute":"quit"}');
      const { status, signal } = await daemon.exited;
      hanging.kill();
      expect([status, signal]).toEqual([0, null]);
      expect(performance.now() - began).toBeLessThan(limitMs(ENDS_IN_MS));
    } finally {
      await daemon.stop();
      await server.end();
    }
  });

/** Copies into the file until that works: the server has only just come back. */
async function wholeAgain(uri: string, file: string): Promise<void> {
  const deadline = Date.now() + limitMs(60_000);
  for (;;) {
    writeFileSync(file, '');
    try {
      await run('nbdcopy', [uri, file]);
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
