/**
 * Runs the same commands on both daemons and gives their replies, for tests that need more freedom than transcripts
 * have: files made by other programs, lists whose order does not matter.
 */

import { type RunningDaemon, startDaemon } from './daemons.ts';
import type { QmpMessage } from './qmp-client.ts';

/** A command: name and arguments; `$DIR` in strings stands for the scratch folder. */
export type Command = readonly [name: string, args?: object];

export interface Reply {
  readonly command: string;
  readonly reply: unknown;
}

/** Lists of named things are sorted: the original keeps them in hash tables. */
function sortLists(value: unknown): unknown {
  if (!Array.isArray(value)) return value;
  const keyOf = (item: unknown): string => {
    const { name, label } = (item ?? {}) as { name?: unknown; label?: unknown };
    return String(name ?? label ?? '');
  };
  return value.toSorted((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
}

async function replies(daemon: RunningDaemon, commands: readonly Command[]): Promise<Reply[]> {
  const client = await daemon.connect();
  await client.negotiate();
  const records: Reply[] = [];
  for (const [name, args] of commands) {
    const text = JSON.stringify({ execute: name, ...(args && { arguments: args }) });
    client.send(`${text.replaceAll('$DIR', daemon.dir)}\n`);
    let message: QmpMessage | null;
    do message = await client.next();
    while (message !== null && 'event' in message);
    if (message === null) throw new Error(`the ${daemon.kind} has gone at ${name}`);
    const plain = JSON.parse(JSON.stringify(message).replaceAll(daemon.dir, '$DIR')) as QmpMessage;
    const reply = 'return' in plain ? { return: sortLists(plain.return) } : plain;
    records.push({ command: `${name} ${JSON.stringify(args ?? {})}`, reply });
  }
  client.close();
  return records;
}

/** The replies of both daemons; `prepare` fills the scratch folder of each. */
export async function compareCommands(
  commands: readonly Command[],
  prepare: (dir: string) => void = () => undefined,
): Promise<{ theirs: Reply[]; ours: Reply[] }> {
  const [theirs, ours] = await Promise.all(
    (['qemu-storage-daemon', 'qblockd'] as const).map(async (kind) => {
      const daemon = await startDaemon(kind, { prepare });
      try {
        return await replies(daemon, commands);
      } finally {
        await daemon.stop();
      }
    }),
  );
  return { theirs: theirs ?? [], ours: ours ?? [] };
}
