/** Descriptors of families that node does not know become its streams and servers; keep-alives of TCP connections. */

import { createServer, type Server, type Socket } from 'node:net';
import koffi from 'koffi';
import { afterEach, expect, test } from 'vitest';
import { dupFd } from '../../src/aio/ffi.ts';
import { bindVsock, connectVsock, foreignServer, foreignSocket } from '../../src/aio/host/vsock.ts';
import { connectTo, listenOn } from '../../src/aio/sockets.ts';

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

const getsockopt = koffi.load('libc.so.6').func('getsockopt', 'int', ['int', 'int', 'int', 'void*', 'void*']);

function option(fd: number, level: number, name: number): number {
  const value = Buffer.alloc(4);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(4);
  expect(getsockopt(fd, level, name, value, length)).toBe(0);
  return value.readUInt32LE();
}

test('keep-alives are set as the address says, on both sides', async () => {
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
  for (const socket of [client, accepted[0]!]) {
    const fd = fdOf(socket);
    // SOL_SOCKET, SO_KEEPALIVE; IPPROTO_TCP, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL.
    const found = [option(fd, 1, 9), option(fd, 6, 6), option(fd, 6, 4), option(fd, 6, 5)];
    expect(found).toEqual([1, 3, 77, 11]);
  }
});
