/** Nodes of network drivers in a block layer of the test's own: opened from options, read and written, closed. */

import { createEngine } from '../../../src/aio/create-engine.ts';
import type { EngineKind } from '../../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { nodeFilename } from '../../../src/block/open/filename.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';

const owner = { describe: () => 'a test', drainedBegin: () => undefined, drainedEnd: () => undefined };

export interface RemoteNode {
  readonly layer: BlockLayer;
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  /** What the user was told. */
  readonly reports: readonly string[];
  /** The node's name as queries show it. */
  readonly filename: string;
  read(offset: number, bytes: number): Promise<Buffer>;
  write(offset: number, data: Buffer): Promise<void>;
  close(): Promise<void>;
}

export interface OpenSettings {
  readonly secrets?: Readonly<Record<string, string>>;
  readonly engine?: EngineKind;
  readonly writable?: boolean;
}

/** Opens the node that the options of blockdev-add describe. */
export async function openRemote(
  options: Readonly<Record<string, unknown>>,
  { secrets = {}, engine = 'io_uring', writable = false }: OpenSettings = {},
): Promise<RemoteNode> {
  const reports: string[] = [];
  const layer = new BlockLayer({
    engine: createEngine(engine).engine,
    events: { emit: () => undefined },
    drivers,
    secret(id) {
      const text = secrets[id];
      if (text === undefined) throw new Error(`no secret ${id}`);
      return Buffer.from(text);
    },
    report: (text) => reports.push(text),
  });
  try {
    const node = await addNode(layer, { 'node-name': 'n', 'read-only': !writable, ...options });
    const perm = Perm.consistentRead | (writable ? Perm.write | Perm.resize : 0);
    const backend = await layer.createBackend(node, { perm, shared: Perm.all }, owner);
    return {
      layer,
      node,
      backend,
      reports,
      filename: nodeFilename(node),
      async read(offset, bytes) {
        const memory = allocateIoMemory(bytes);
        await backend.preadv(offset, bytes, vectorOf(memory), 0);
        return memory.buf;
      },
      async write(offset, data) {
        const memory = allocateIoMemory(data.length);
        memory.buf.set(data);
        await backend.pwritev(offset, data.length, vectorOf(memory), 0);
      },
      async close() {
        await backend.close();
        await layer.closeAll();
        layer.engine.close();
      },
    };
  } catch (error) {
    await layer.closeAll();
    layer.engine.close();
    throw error;
  }
}

/** Bytes that look random and are the same each time. */
export function testPattern(bytes: number, seed = 1): Buffer {
  const data = Buffer.alloc(bytes);
  let state = seed >>> 0 || 1;
  for (let at = 0; at + 4 <= bytes; at += 4) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    data.writeUInt32LE(state >>> 0, at);
  }
  return data;
}
