/**
 * The same bytes to qemu-storage-daemon and to our QMP sessions: the same bytes must come back, apart from what a
 * daemon says about itself.
 */

import { existsSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { type QmpTestServer, startQmpServer, testDispatcher } from '../qmp/qmp-server.ts';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from './daemons.ts';
import { FRAGMENTS, STREAMS } from './qmp-streams.ts';
import { missingPeer, requirePeer } from './requires.ts';

const NEGOTIATE = '{"execute":"qmp_capabilities"}';
/** Ends every unfinished token and message. */
const RESYNC = '\n\xff\n';

/** The reply to the command that ends a stream, complete: on one line or pretty. */
const LAST_REPLY = /"the end"(?:.*\}\}\r\n|[\s\S]*\r\n\}\r\n)$/;

let original: RunningDaemon | null = null;
let ours: QmpTestServer;
let oursPretty: QmpTestServer;
const scratchDir = makeScratchDir();
const ourPath = path.join(scratchDir, 'qmp.sock');
const ourPrettyPath = path.join(scratchDir, 'pretty.sock');
const PRETTY_MONITOR = [
  '--chardev',
  'socket,id=p,path=$DIR/p.sock,server=on,wait=off',
  '--monitor',
  'p,pretty=on',
];

beforeAll(async () => {
  ours = await startQmpServer(ourPath, testDispatcher());
  oursPretty = await startQmpServer(ourPrettyPath, testDispatcher(), true);
  if (missingPeer(['qemu-storage-daemon']) === null) {
    original = await startDaemon('qemu-storage-daemon', { args: PRETTY_MONITOR });
  }
});

afterAll(async () => {
  await ours?.close();
  await oursPretty?.close();
  await original?.stop();
  rmSync(scratchDir, { recursive: true, force: true });
});

/** Sends pieces on a new connection; the answer up to that of a last command, without what is ours to choose. */
async function exchange(socketPath: string, pieces: readonly Buffer[], first = NEGOTIATE): Promise<string> {
  const socket: Socket = connect(socketPath);
  socket.setEncoding('latin1');
  let answer = '';
  try {
    return await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`no last reply after ${JSON.stringify(answer)}`)),
        limitMs(30_000),
      );
      socket.on('error', reject);
      socket.on('data', (text: string) => {
        answer += text;
        if (!LAST_REPLY.test(answer)) return;
        clearTimeout(timer);
        resolve(answer);
      });
      socket.on('connect', () => {
        socket.write(first);
        for (const piece of pieces) socket.write(piece);
        socket.write(Buffer.from(`${RESYNC}{"execute":"nope","id":"the end"}\n`, 'latin1'));
      });
    }).then(normalise);
  } finally {
    socket.destroy();
  }
}

function normalise(text: string): string {
  return text.replaceAll(/"package": "[^"]*"/g, '"package": ""');
}

async function compare(pieces: readonly Buffer[], first?: string): Promise<void> {
  const theirs = await exchange(original?.socketPath ?? '', pieces, first);
  expect(await exchange(ourPath, pieces, first)).toBe(theirs);
}

test('every stream of the table gets the same answer', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const different: string[] = [];
  for (const stream of STREAMS) {
    const theirs = await exchange(original?.socketPath ?? '', [stream]);
    const answer = await exchange(ourPath, [stream]);
    if (answer !== theirs)
      different.push(`${stream.toString('latin1')}\n-- theirs\n${theirs}\n-- ours\n${answer}`);
  }
  expect(different).toEqual([]);
});

test('the daemon as a whole answers every stream the same', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  if (!existsSync(path.join(repositoryRoot, 'dist/bundle/qblockd.js')))
    context.skip('the daemon is not built');
  const daemon = await startDaemon('qblockd');
  try {
    const different: string[] = [];
    for (const stream of STREAMS) {
      const theirs = await exchange(original?.socketPath ?? '', [stream]);
      if ((await exchange(daemon.socketPath, [stream])) !== theirs) different.push(stream.toString('latin1'));
    }
    expect(different).toEqual([]);
  } finally {
    await daemon.stop();
  }
});

test('pretty output', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const ids = ['[]', '{}', '[1,{},[],{"a":[{}]}]', '"\\u00e9"'].map((id) => `{"execute":"x","id":${id}}`);
  const stream = [Buffer.from(`${ids.join('')}xx {"execute":"query-version","id":1.5}`)];
  const theirs = await exchange(path.join(original?.dir ?? '', 'p.sock'), stream);
  expect(await exchange(ourPrettyPath, stream)).toBe(theirs);
});

test('random streams in random pieces get the same answer', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const fragments = fc.array(fc.constantFrom(...FRAGMENTS), { minLength: 1, maxLength: 30 });
  await fc.assert(
    fc.asyncProperty(fragments, async (pieces) => compare(pieces)),
    { numRuns: 300 },
  );
});

test('commands before, during and after negotiation', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const query = '{"execute":"query-version","id":1}';
  await compare([Buffer.from(`${query}{"foo":1}xx {"exec-oob":"x"}`)], '');
  await compare(
    [Buffer.from(`{"execute":"qmp_capabilities","arguments":{"z":1}}${query}${NEGOTIATE}${query}`)],
    '',
  );
  const enableOob = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}';
  const outOfBand = ['query-version', 'nope', 'qmp_capabilities', 'quit'].map(
    (name) => `{"exec-oob":"${name}","id":2}`,
  );
  const frames = [
    '{"exec-oob":5}',
    '{"exec-oob":"query-version","arguments":3}',
    '{"exec-oob":"x","foo":1,"id":3}',
  ];
  await compare([Buffer.from([...outOfBand, ...frames, query, query, 'xx ', query].join(''))], enableOob);
  // Not out of band, so in a stream of its own: in the original it would race with those above.
  await compare([Buffer.from(`{"exec-oob":"x","execute":"x"}${query}`)], enableOob);
});

test('members are written in the original order', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const names = fc.uniqueArray(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }), {
    maxLength: 60,
  });
  await fc.assert(
    fc.asyncProperty(names, async (list) => {
      const id = Object.fromEntries(list.map((name) => [name, 1]));
      await compare([Buffer.from(JSON.stringify({ execute: 'x', id }))]);
    }),
    { numRuns: 100 },
  );
});

test('of several unexpected members the same one is named', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const names = fc.uniqueArray(fc.stringMatching(/^[a-z-]{1,8}$/), { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(names, async (list) => {
      const args = Object.fromEntries(list.map((name) => [name, 1]));
      await compare([Buffer.from(JSON.stringify({ execute: 'query-block', arguments: args }))]);
    }),
    { numRuns: 100 },
  );
});
