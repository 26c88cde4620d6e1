/** Both engines behave alike: files, sockets, errors, and more operations at once than a ring has room for. */

import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import type { AioEngine, ByteStream } from '../../src/aio/engine.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from '../../src/aio/ffi.ts';
import { allocateIoMemory, concatVectors, type IoVector, vectorOf } from '../../src/aio/memory.ts';
import { E } from '../../src/errors/errno.ts';

function bytesOf(text: string): IoVector {
  const memory = allocateIoMemory(text.length);
  memory.buf.write(text, 'latin1');
  return vectorOf(memory);
}

function textOf(vec: IoVector): string {
  return vec.segments
    .map(({ mem, start, length }) => mem.buf.toString('latin1', start, start + length))
    .join('');
}

describe.each(['io_uring', 'threads'] as const)('engine %s', (kind) => {
  let engine: AioEngine;
  let folder: string;
  let fd: number;

  beforeAll(() => {
    engine = createEngine(kind).engine;
    folder = mkdtempSync(path.join(tmpdir(), 'qb-engine-'));
    fd = openSync(path.join(folder, 'file'), 'w+');
  });
  afterAll(() => {
    expect(engine.inFlight).toBe(0);
    closeSync(fd);
    engine.close();
    rmSync(folder, { recursive: true });
  });

  test('is what was asked for', () => {
    expect(engine.kind).toBe(kind);
  });

  test('vectors of one and of many segments, at an offset', async () => {
    expect(await engine.writev(fd, bytesOf('hello'), 3)).toBe(5);
    const many = concatVectors(...'world'.split('').map(bytesOf));
    expect(await engine.writev(fd, many, 8)).toBe(5);
    const twenty = concatVectors(...'0123456789abcdefghij'.split('').map(bytesOf));
    expect(await engine.writev(fd, twenty, 13)).toBe(20);
    const target = concatVectors(vectorOf(allocateIoMemory(4)), vectorOf(allocateIoMemory(9)));
    expect(await engine.readv(fd, target, 3)).toBe(13);
    expect(textOf(target)).toBe('helloworld012');
  });

  test('a read past the end is short, at the end empty', async () => {
    ftruncateSync(fd, 100);
    expect(await engine.readv(fd, vectorOf(allocateIoMemory(4096)), 90)).toBe(10);
    expect(await engine.readv(fd, vectorOf(allocateIoMemory(4096)), 100)).toBe(0);
  });

  test('offsets beyond 4 GiB', async () => {
    const offset = 5 * 2 ** 30 + 7;
    expect(await engine.writev(fd, bytesOf('far'), offset)).toBe(3);
    const back = vectorOf(allocateIoMemory(3));
    expect(await engine.readv(fd, back, offset)).toBe(3);
    expect(textOf(back)).toBe('far');
    ftruncateSync(fd, 0);
  });

  test('errors are negative errnos', async () => {
    const readOnly = openSync(path.join(folder, 'file'), 'r');
    expect(await engine.writev(readOnly, bytesOf('x'), 0)).toBe(-E.EBADF);
    closeSync(readOnly);
    expect(await engine.fdatasync(readOnly)).toBe(-E.EBADF);
  });

  test('fdatasync and hole punching', async () => {
    ftruncateSync(fd, 0);
    const block = vectorOf(allocateIoMemory(65536));
    block.segments[0]?.mem.buf.fill(7);
    expect(await engine.writev(fd, block, 0)).toBe(65536);
    expect(await engine.fdatasync(fd)).toBe(0);
    expect(await engine.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192)).toBe(0);
    const file = readFileSync(path.join(folder, 'file'));
    expect(statSync(path.join(folder, 'file')).size).toBe(65536);
    expect(file.subarray(4096, 4096 + 8192).every((byte) => byte === 0)).toBe(true);
    expect(file[4095]).toBe(7);
    expect(file[4096 + 8192]).toBe(7);
  });

  test('more operations at once than the ring holds', async () => {
    ftruncateSync(fd, 4096);
    const target = vectorOf(allocateIoMemory(64));
    const results = await Promise.all(
      Array.from({ length: 10_000 }, (_, i) => engine.readv(fd, target, i % 4000)),
    );
    expect(results.every((result) => result === 64)).toBe(true);
  });

  describe('streams', () => {
    async function pair(): Promise<{ stream: ByteStream; peer: Socket; end(): void }> {
      const socketPath = path.join(folder, `s${Math.random()}`);
      const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
      await new Promise<void>((resolve) => server.listen(socketPath, resolve));
      const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
      const peer = connect(socketPath);
      const stream = engine.adoptSocket(await accepted);
      return {
        stream,
        peer,
        end: () => {
          stream.close();
          peer.destroy();
          server.close();
        },
      };
    }

    test('reads what arrives, then the end', async () => {
      const { stream, peer, end } = await pair();
      const memory = allocateIoMemory(100);
      const pending = stream.read({ mem: memory, start: 10, length: 90 });
      peer.write('hello');
      expect(await pending).toBe(5);
      expect(memory.buf.toString('latin1', 10, 15)).toBe('hello');
      peer.end();
      expect(await stream.read({ mem: memory, start: 0, length: 100 })).toBe(0);
      end();
    });

    test('what arrived before the peer was lost is received piece by piece, then the loss', async () => {
      const { stream, peer, end } = await pair();
      peer.pause();
      // Unread data of ours makes the peer's end an error, of which libuv tells once.
      await stream.write([{ mem: allocateIoMemory(64), start: 0, length: 64 }]);
      peer.write(Buffer.alloc(1000, 7));
      await new Promise((resolve) => setTimeout(resolve, 20));
      peer.destroy();
      await new Promise((resolve) => setTimeout(resolve, 20));
      const memory = allocateIoMemory(10);
      let bytes = 0;
      const last = await new Promise<number>((resolve) => {
        stream.watchReadable(() => {
          const received = stream.receive(memory, 0, 10);
          if (received > 0) bytes += received;
          else if (received !== -E.EAGAIN) resolve(received);
          return 1;
        });
      });
      expect([0, 1000]).toContain(bytes);
      expect(last).toBeLessThanOrEqual(0);
      end();
    });

    test('send takes what fits and says so, and the rest when it is told that there is room', async () => {
      const { stream, peer, end } = await pair();
      peer.pause();
      const memory = allocateIoMemory(4 << 20);
      const sent = stream.send([{ mem: memory, start: 0, length: 4 << 20 }], 0);
      expect(sent).toBeGreaterThan(0);
      expect(sent).toBeLessThan(4 << 20);
      expect(stream.send([{ mem: memory, start: 0, length: 4 << 20 }], 0)).toBe(-E.EAGAIN);
      expect(stream.hasRoomFor(1 << 20)).toBe(false);
      const hasRoom = new Promise<void>((resolve) => stream.whenWritable(resolve));
      peer.resume();
      await hasRoom;
      expect(stream.send([{ mem: memory, start: 0, length: 100 }], 0)).toBe(100);
      const told = new Promise<void>((resolve) => stream.whenWritable(resolve));
      stream.close();
      await told;
      expect(stream.send([{ mem: memory, start: 0, length: 100 }], 0)).toBe(-E.EPIPE);
      end();
    });

    test('a write larger than any socket buffer, in many segments, to a slow reader', async () => {
      const { stream, peer, end } = await pair();
      const segmentCount = 700;
      const segments = Array.from({ length: segmentCount }, (_, i) => {
        const memory = allocateIoMemory(4096 + (i % 3));
        memory.buf.fill(i % 251);
        return { mem: memory, start: 0, length: memory.buf.length };
      });
      const total = segments.reduce((sum, segment) => sum + segment.length, 0);
      const written = stream.write(segments);
      await new Promise((resolve) => setTimeout(resolve, 50));
      const parts: Buffer[] = [];
      let received = 0;
      for await (const part of peer as AsyncIterable<Buffer>) {
        parts.push(part);
        received += part.length;
        if (received >= total) break;
      }
      expect(await written).toBe(total);
      expect(Buffer.concat(parts).equals(Buffer.concat(segments.map(({ mem }) => mem.buf)))).toBe(true);
      end();
    });

    test('closing ends a pending read and a pending write; afterwards both fail', async () => {
      const { stream, end } = await pair();
      const memory = allocateIoMemory(16 * 1024 * 1024);
      const read = stream.read({ mem: memory, start: 0, length: 10 });
      const write = stream.write([{ mem: memory, start: 0, length: memory.buf.length }]);
      await new Promise((resolve) => setTimeout(resolve, 20));
      stream.close();
      stream.close();
      expect(await read).toBeLessThanOrEqual(0);
      expect(await write).toBeLessThan(0);
      expect(await stream.read({ mem: memory, start: 0, length: 10 })).toBeLessThan(0);
      expect(await stream.write([{ mem: memory, start: 0, length: 1 }])).toBeLessThan(0);
      end();
    });

    test('a peer that vanishes fails the write', async () => {
      const { stream, peer, end } = await pair();
      const memory = allocateIoMemory(16 * 1024 * 1024);
      const write = stream.write([{ mem: memory, start: 0, length: memory.buf.length }]);
      await new Promise((resolve) => setTimeout(resolve, 20));
      peer.destroy();
      expect(await write).toBeLessThan(0);
      end();
    });
  });
});
