/**
 * A QMP server in this process: real sessions on a UNIX socket, with the commands that need no block layer.
 */

import { createServer, type Server, type Socket } from 'node:net';
import { type ControlContext, controlCommands } from '../../src/commands/control.ts';
import { introspectCommands } from '../../src/commands/introspect.ts';
import { BlockError } from '../../src/errors/error.ts';
import { JobTable } from '../../src/jobs/job-common.ts';
import { createDispatcher, type Dispatcher, type Handlers } from '../../src/qmp/dispatch.ts';
import { EventHub } from '../../src/qmp/events.ts';
import { QmpSession } from '../../src/qmp/session.ts';
import { COMMAND_NAMES } from '../../src/qmp/validate.ts';

export type TestContext = ControlContext;

/** A dispatcher whose other commands check their arguments and then fail, unless `overrides` has them. */
export function testDispatcher(
  overrides: Partial<Handlers<TestContext>> = {},
  requestShutdown: () => void = () => undefined,
): Dispatcher {
  const missing = () => {
    throw new BlockError('not in this test');
  };
  const handlers = {
    ...Object.fromEntries(COMMAND_NAMES.map((name) => [name, missing])),
    ...controlCommands,
    ...introspectCommands,
    ...overrides,
  } as unknown as Handlers<TestContext>;
  const jobs = new JobTable({ emit: () => undefined });
  return createDispatcher(
    {
      requestShutdown,
      exports: { closeAll: async () => undefined },
      layer: { endBeganMs: null, cancelRequests: () => undefined },
      jobs,
    },
    handlers,
  );
}

export interface QmpTestServer {
  readonly events: EventHub;
  close(): Promise<void>;
}

/** Serves QMP on a UNIX socket. */
export async function startQmpServer(
  path: string,
  dispatcher: Dispatcher,
  pretty = false,
): Promise<QmpTestServer> {
  const events = new EventHub();
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    const session = new QmpSession({
      dispatcher,
      send: (text) => socket.write(text),
      close: () => socket.destroy(),
      pause: () => socket.pause(),
      resume: () => socket.resume(),
      pretty,
    });
    const unsubscribe = events.subscribe(session);
    socket.on('data', (bytes) => session.receive(bytes));
    socket.on('drain', () => session.drained());
    socket.on('error', () => undefined); // 'close' follows
    socket.on('close', () => {
      sockets.delete(socket);
      unsubscribe();
      session.disconnected();
    });
    session.start();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    events,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
