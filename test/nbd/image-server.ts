/** An NBD server over nodes of a real block layer, with real files below. */

import { connect, type Socket } from 'node:net';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { EngineKind } from '../../src/aio/engine.ts';
import type { BlockBackend } from '../../src/block/backend.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { drivers } from '../../src/drivers/table.ts';
import type { NbdServerSettings } from '../../src/nbd/server/server.ts';
import { DiskClient, type Style } from './disk-client.ts';
import { RawClient } from './raw-client.ts';
import { makeExport, serve, type TestExport, type TestServer } from './serve.ts';

/** A node that is exported under its name. */
export interface ServedDisk {
  readonly backend: BlockBackend;
  /** Bytes that have been sent by lending the pages of the file. */
  readonly lent: () => number;
  enter(style?: Style): Promise<{ raw: RawClient; client: DiskClient }>;
}

export interface ImageServer {
  readonly server: TestServer;
  readonly layer: BlockLayer;
  /** What is exported under a name; throws for another one. */
  disk(name: string): ServedDisk;
  stop(): Promise<void>;
}

export interface ImageServerOptions {
  readonly kind?: EngineKind;
  /** On a port of 127.0.0.1 instead of a UNIX socket. */
  readonly tcp?: boolean;
  readonly settings?: Partial<NbdServerSettings>;
}

/** Adds the nodes, in this order, and exports those of `exported`, writable where they are. */
export async function serveNodes(
  nodes: readonly Readonly<Record<string, unknown>>[],
  exported: readonly string[],
  { kind = 'io_uring', tcp = false, settings = {} }: ImageServerOptions = {},
): Promise<ImageServer> {
  const { engine } = createEngine(kind);
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    report: () => undefined,
  });
  for (const options of nodes) await addNode(layer, options as never);
  const disks = new Map<string, ServedDisk>();
  const exports: TestExport[] = [];
  for (const name of exported) {
    const made: { exp: TestExport | null } = { exp: null };
    const owner = {
      describe: () => 'a test',
      drainedBegin: () => {
        if (made.exp !== null) made.exp.paused = true;
      },
      drainedEnd: () => {
        if (made.exp === null) return;
        made.exp.paused = false;
        for (const client of made.exp.clients) client.resume();
      },
    };
    const node = layer.findNode(name);
    if (node === null) throw new Error(`no node ${name}`);
    const perm = node.readOnly || node.driver.name === 'snapshot-access' ? 0 : Perm.write;
    const backend = await layer.createBackend(
      node,
      { perm: Perm.consistentRead | perm, shared: Perm.all },
      owner,
    );
    let lent = 0;
    backend.pagesLent = ((bytes: number) => {
      lent += bytes;
    }) as () => void;
    made.exp = makeExport(backend, node.totalBytes, { name });
    exports.push(made.exp);
    const enter = async (style: Style = 'simple'): Promise<{ raw: RawClient; client: DiskClient }> => {
      const connection = tcp ? await RawClient.over(connectTo(server)) : await server.connect();
      return { raw: connection, client: await DiskClient.enter(connection, name, style) };
    };
    disks.set(name, { backend, lent: () => lent, enter });
  }
  const address = { type: 'inet', host: '127.0.0.1', port: '0' } as const;
  const server = await serve(exports, { ...settings, ...(tcp ? { address } : {}) }, kind);
  return {
    server,
    layer,
    disk: (name) => {
      const disk = disks.get(name);
      if (disk === undefined) throw new Error(`${name} is not exported`);
      return disk;
    },
    stop: async () => {
      await server.stop();
      for (const { backend } of disks.values()) await backend.close();
      await layer.closeAll();
      engine.close();
    },
  };
}

function connectTo({ server }: TestServer): Socket {
  const [address] = server.addresses;
  if (address?.type !== 'inet') throw new Error('not on a port');
  return connect({ host: address.host, port: Number(address.port) });
}
