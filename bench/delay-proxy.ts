/**
 * A TCP proxy that hands on what the server says a little later than it came, as a long way would: for network.ts.
 *
 * Usage: node delay-proxy.js LISTEN-PORT SERVER-PORT DELAY-MS PID-FILE, all on loopback.
 */

import { writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';

/** More than this on its way, and the sender waits: what a link holds is bounded too. */
const ON_THE_WAY_BYTES = 64 * 1024 * 1024;

function handOn(from: Socket, to: Socket, delayMs: number): void {
  let onTheWay = 0;
  from.on('data', (chunk) => {
    onTheWay += chunk.length;
    if (onTheWay > ON_THE_WAY_BYTES) from.pause();
    setTimeout(() => {
      onTheWay -= chunk.length;
      if (!to.destroyed) to.write(chunk);
      if (from.isPaused() && onTheWay < ON_THE_WAY_BYTES) from.resume();
    }, delayMs);
  });
  from.on('end', () => setTimeout(() => to.end(), delayMs + 1));
  from.on('error', () => to.destroy());
}

const [listen = '', server = '', delay = '', pidFile = ''] = process.argv.slice(2);
createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
  const there = connect({ port: Number(server), host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
  handOn(there, client, Number(delay));
  client.on('error', () => there.destroy());
  client.pipe(there);
}).listen(Number(listen), '127.0.0.1', () => writeFileSync(pidFile, String(process.pid)));
