/**
 * What the nbd driver says of servers that go wrong in the handshake: the same words as the original.
 *
 * One scripted server with one socket per scenario; both daemons get the same blockdev-add for each.
 */

import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { ScriptedServer } from '../nbd/scripted-server.ts';
import { type DaemonKind, makeScratchDir, startDaemon } from './daemons.ts';
import { handshakeScenarios } from './nbd-client-scenarios.ts';
import { requirePeer } from './requires.ts';

/** What a daemon answers to blockdev-add for each scenario; a node that could be added is removed again. */
async function answers(kind: DaemonKind, dir: string): Promise<Record<string, string>> {
  const daemon = await startDaemon(kind);
  try {
    const client = await daemon.connect();
    await client.negotiate();
    const found: Record<string, string> = {};
    for (const [index, name] of Object.keys(handshakeScenarios).entries()) {
      const server = { type: 'unix', path: path.join(dir, `${index}`) };
      const run = async (execute: string, args: object): Promise<string> => {
        client.send(`${JSON.stringify({ execute, arguments: args })}\n`);
        const reply = await client.next();
        return JSON.stringify(reply?.error ?? reply?.return ?? 'nothing');
      };
      found[name] = await run('blockdev-add', {
        driver: 'nbd',
        'node-name': 'n',
        'auto-read-only': true,
        server,
      });
      if (found[name] === '{}') await run('blockdev-del', { 'node-name': 'n' });
    }
    client.close();
    return found;
  } finally {
    await daemon.stop();
  }
}

test('servers that go wrong in the handshake', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const dir = makeScratchDir();
  const servers = await Promise.all(
    Object.values(handshakeScenarios).map((script, index) =>
      // A server that says half a word hangs up after a while, so that nobody waits for ever.
      ScriptedServer.listen(path.join(dir, `${index}`), { hangUpMs: 200, ...script }),
    ),
  );
  try {
    const theirs = await answers('qemu-storage-daemon', dir);
    const ours = await answers('qblockd', dir);
    const folder = process.env.RECORD_TRANSCRIPTS;
    if (folder !== undefined) {
      writeFileSync(path.join(folder, 'handshake.original.json'), JSON.stringify(theirs, null, 1));
      writeFileSync(path.join(folder, 'handshake.ours.json'), JSON.stringify(ours, null, 1));
    }
    expect(ours).toEqual(theirs);
  } finally {
    for (const server of servers) await server.stop();
  }
});
