/** An NBD server over fake backends, on a UNIX socket in a scratch folder. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { EngineKind } from '../../src/aio/engine.ts';
import type { BackendIo } from '../../src/block/contract/backend-io.ts';
import { DataMap } from '../../src/nbd/server/data-map.ts';
import type { ExportClient, NbdExport } from '../../src/nbd/server/export.ts';
import { NbdServer, type NbdServerSettings } from '../../src/nbd/server/server.ts';
import { RawClient } from './raw-client.ts';

/** A plain export; `paused` can be set, and the clients are there to be looked at. */
export interface TestExport extends NbdExport {
  paused: boolean;
  readonly clients: Set<ExportClient>;
}

export function makeExport(
  backend: BackendIo,
  sizeBytes: number,
  overrides: Partial<NbdExport> = {},
): TestExport {
  const clients = new Set<ExportClient>();
  return {
    name: 'disk',
    description: '',
    sizeBytes,
    writable: true,
    writethrough: false,
    allocationDepth: false,
    bitmaps: [],
    multiConn: true,
    backend,
    paused: false,
    dataMap: new DataMap(sizeBytes),
    clients,
    attach: (client) => void clients.add(client),
    detach: (client) => void clients.delete(client),
    ...overrides,
  };
}

export interface TestServer {
  readonly server: NbdServer;
  readonly socketPath: string;
  readonly log: string[];
  connect(): Promise<RawClient>;
  stop(): Promise<void>;
}

export async function serve(
  exports: readonly NbdExport[],
  settings: Partial<NbdServerSettings> = {},
  kind: 'auto' | EngineKind = 'auto',
): Promise<TestServer> {
  const dir = mkdtempSync(path.join(tmpdir(), 'qbn-'));
  const socketPath = path.join(dir, 'nbd.sock');
  const { engine } = createEngine(kind);
  const log: string[] = [];
  const server = new NbdServer(engine, {
    address: { type: 'unix', path: socketPath },
    tls: null,
    maxConnections: 100,
    handshakeMaxSeconds: 10,
    allowInheritedFd: false,
    log: (message) => {
      if (!message.startsWith('client ')) log.push(message);
    },
    ...settings,
  });
  for (const exp of exports) server.addExport(exp);
  await server.start();
  return {
    server,
    socketPath,
    log,
    connect: () => RawClient.connect(socketPath),
    stop: async () => {
      await server.stop();
      engine.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
