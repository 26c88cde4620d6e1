/** Ports for servers of tests. */

import { createServer } from 'node:net';

/** Below what the kernel gives to clients, and to servers that ask for any port. */
const FIRST_PORT = 10_000;
const PORTS = 20_000;
/** Ports that a process tries before it comes to those of another one. */
const PORTS_OF_A_PROCESS = 32;

let tried = 0;

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.on('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

/** A port of loopback that nobody listens on; tests that run side by side get different ones. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST_PORT + ((process.pid * PORTS_OF_A_PROCESS + tried++) % PORTS);
    if (await isFree(port)) return port;
  }
}
