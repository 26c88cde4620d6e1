/**
 * A server of the table (kinds.ts) as a process of its own, for scripts in other languages: iotests/remote.py.
 *
 * `node dist/test/peers/network/servers/serve.js KIND FOLDER`. A line of JSON comes first: `args` and `isWritable` of the
 * kind, or what is `missing`. Then each line of the input is a command: `make NAME FILE`, `place NAME`, `kill`, `start`;
 * each is answered by a line: the options of a node, or null. The server ends with the input.
 */

import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { missingPeer, PEERS } from '../../requires.ts';
import { NETWORK_KINDS, type NetworkKind, type NetworkKindName } from './kinds.ts';

function say(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

async function serve(kind: NetworkKind, folder: string): Promise<void> {
  const server = await kind.start(folder);
  process.once('SIGTERM', () => process.stdin.destroy());
  try {
    say({ args: kind.args ?? [], isWritable: kind.isWritable });
    for await (const line of createInterface({ input: process.stdin })) {
      const [command, name = '', file = ''] = line.split(' ');
      if (command === 'make') say(await server.make(name, readFileSync(file)));
      else if (command === 'place') say(server.place(name));
      else if (command === 'kill') say((await server.kill()) ?? null);
      else if (command === 'start') say((await server.start()) ?? null);
      else throw new Error(`unknown command '${line}'`);
    }
  } finally {
    await server.end();
  }
}

const [name = '', folder = ''] = process.argv.slice(2);
const kind: NetworkKind = NETWORK_KINDS[name as NetworkKindName];
const missing = missingPeer(kind.needs);
if (missing === null) await serve(kind, folder);
else say({ missing: `${missing} is missing (Debian package ${PEERS[missing].debianPackage})` });
