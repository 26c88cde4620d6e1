/** Descriptors of families that node does not know become its streams and servers; keep-alives of TCP connections. */

import { spawnSync } from 'node:child_process';
import { createServer, type Server, type Socket } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { dupFd } from '../../src/aio/ffi.ts';
import { bindVsock, connectVsock, foreignServer, foreignSocket } from '../../src/aio/host/vsock.ts';
import { connectTo, listenOn } from '../../src/aio/sockets.ts';
import { requirePeer } from '../peers/requires.ts';

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const fdOf = (handle: unknown): number => (handle as { _handle: { fd: number } })._handle.fd;

async function listening(onConnection: (socket: Socket) => void): Promise<Server> {
  const server = createServer(onConnection);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** Echoes, and is told apart from others by a prefix. */
function echo(socket: Socket): void {
  socket.on('error', () => undefined);
  socket.on('data', (data: Buffer) => socket.write(Buffer.concat([Buffer.from('echo '), data])));
}

test('a server and a stream work on descriptors of another family than node is given', async () => {
  // TCP stands for the family that node is not told of: the descriptors look like UNIX sockets to it.
  const model = await listening(() => undefined);
  const { port } = model.address() as { port: number };
  const fd = dupFd(fdOf(model));
  await new Promise((resolve) => model.close(resolve));
  const settings = { pauseOnConnect: false, allowHalfOpen: false };
  const server = foreignServer(fd, 16, settings, echo) as Server;
  cleanups.push(() => server.close());
  const plain = await connectTo({ type: 'inet', host: '127.0.0.1', port: String(port) });
  const taken = dupFd(fdOf(plain));
  plain.destroy();
  const socket = foreignSocket(taken, false);
  cleanups.push(() => socket.destroy());
  let text = '';
  socket.on('data', (data: Buffer) => {
    text += String(data);
  });
  socket.write('hello');
  await expect.poll(() => text).toBe('echo hello');
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.end();
  await closed;
});

test('vsock over the loopback of the kernel', async (context) => {
  const place = { cid: 1, port: 10_455 };
  const fd = bindVsock(place);
  if (fd < 0) context.skip('no vsock loopback in this kernel (CONFIG_VSOCKETS_LOOPBACK)');
  const server = foreignServer(fd, 16, { pauseOnConnect: false, allowHalfOpen: false }, echo) as Server;
  cleanups.push(() => server.close());
  const connected = await connectVsock(place);
  expect(connected).toBeGreaterThan(0);
  const socket = foreignSocket(connected, false);
  cleanups.push(() => socket.destroy());
  let text = '';
  socket.on('data', (data: Buffer) => {
    text += String(data);
  });
  socket.write('hello');
  await expect.poll(() => text).toBe('echo hello');
});

test('keep-alives are set as the address says, on both sides', async (context) => {
  requirePeer(context, 'ss');
  const wanted = {
    'keep-alive': true,
    'keep-alive-count': 3,
    'keep-alive-idle': 77,
    'keep-alive-interval': 11,
  };
  const accepted: Socket[] = [];
  const listener = await listenOn({ type: 'inet', host: '127.0.0.1', port: '0', ...wanted }, (socket) =>
    accepted.push(socket),
  );
  cleanups.push(() => listener.close());
  const [address] = listener.addresses;
  const client = await connectTo({ ...address!, ...wanted } as typeof address & object);
  cleanups.push(() => client.destroy());
  await expect.poll(() => accepted.length).toBe(1);
  cleanups.push(() => accepted[0]!.destroy());
  // The first keep-alive of each end is due in 77 seconds, less what has passed.
  const shown = spawnSync(
    'ss',
    ['-tnoH', `( sport = :${client.remotePort} or dport = :${client.remotePort} )`],
    {
      encoding: 'utf8',
    },
  );
  const timers = shown.stdout
    .split('\n')
    .filter((line) => /ESTAB.*timer:\(keepalive,1min(1[0-7]sec|[,.])/.test(line));
  expect(timers).toHaveLength(2);
});
