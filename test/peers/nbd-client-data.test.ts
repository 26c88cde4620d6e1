/**
 * Data through the nbd driver: random loads against qemu-nbd, nbdkit with filters that delay and fail, and this
 * daemon itself; servers killed and started again under load; nbd names opened by the image tools.
 */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { drivers } from '../../src/drivers/table.ts';
import { createRandom } from '../drivers/qcow2/random.ts';
import { closeNbd, openNbd, runLoad } from '../nbd/disk-load.ts';
import { daemonProgram, makeScratchDir, repositoryRoot } from './daemons.ts';
import { requirePeer } from './requires.ts';

const MiB = 1024 * 1024;

let dir: string;
let disk: string;
let socketPath: string;
/** Ends the servers of a test. */
const servers: Server[] = [];

interface Server {
  /** Ends it at once; resolves when it has gone and its socket with it. */
  kill(): Promise<void>;
}

beforeEach(() => {
  dir = makeScratchDir();
  disk = path.join(dir, 'disk.raw');
  socketPath = path.join(dir, 'n.sock');
  writeFileSync(disk, '');
  truncateSync(disk, 4 * MiB);
});

afterEach(async () => {
  for (const server of servers.splice(0)) await server.kill();
  rmSync(dir, { recursive: true, force: true });
});

async function start(program: string, args: readonly string[]): Promise<Server> {
  rmSync(socketPath, { force: true });
  const child = spawn(program, args, { stdio: 'ignore' });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const server: Server = {
    kill: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
  servers.push(server);
  // The socket is there before somebody listens on it.
  for (let i = 0; !(await answers()); i++) {
    if (i === 400) throw new Error(`${program} does not listen`);
    await pause(25);
  }
  return server;
}

function answers(): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function startQemuNbd(): Promise<Server> {
  return start('qemu-nbd', ['-f', 'raw', '-t', '-e', '16', '--discard=unmap', '-k', socketPath, disk]);
}

const KEY = '0123456789abcdef'.repeat(4);

function startQemuNbdWithTls(): Promise<Server> {
  writeFileSync(path.join(dir, 'keys.psk'), `alice:${KEY}\n`);
  const tls = ['--object', `tls-creds-psk,id=t,dir=${dir},endpoint=server`, '--tls-creds', 't'];
  return start('qemu-nbd', ['-f', 'raw', '-t', '-e', '16', '-k', socketPath, ...tls, disk]);
}

function startNbdkit(filters: readonly string[], parameters: readonly string[]): Promise<Server> {
  const through = filters.map((filter) => `--filter=${filter}`);
  return start('nbdkit', ['--foreground', '--unix', socketPath, ...through, 'file', disk, ...parameters]);
}

function startSelf(): Promise<Server> {
  return start(daemonProgram('qblockd'), [
    ...['--blockdev', `file,node-name=f,filename=${disk},locking=off,discard=unmap`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socketPath}`],
    ...['--export', 'nbd,id=e,node-name=f,name=,writable=on'],
  ]);
}

interface LoadOptions {
  readonly options?: object;
  readonly mayFail?: boolean;
  readonly requests?: number;
  /** Runs beside the load, until it is over. */
  readonly meanwhile?: (isOver: () => boolean) => Promise<void>;
}

/** A random load over the whole disk; the file must hold afterwards what was written. Returns the failed requests. */
async function load({
  options = {},
  mayFail = false,
  requests = 80,
  meanwhile,
}: LoadOptions = {}): Promise<number> {
  const { engine } = createEngine('auto');
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    report: () => undefined,
    tlsCreds: () => ({
      ...{
        kind: 'psk',
        endpoint: 'client',
        verifyPeer: true,
        priority: '',
        username: 'alice',
        dhParams: null,
      },
      findKey: () => Buffer.from(KEY, 'hex'),
    }),
  });
  const backend = await openNbd(layer, { server: { type: 'unix', path: socketPath }, ...options });
  const model = readFileSync(disk);
  let over = false;
  try {
    const beside = meanwhile?.(() => over);
    const settings = { workers: 40, requests, unitBytes: 512, model, mayFail };
    const failed = await runLoad(backend, createRandom(7), settings).finally(() => {
      over = true;
    });
    await beside;
    await backend.flush();
    expect(readFileSync(disk).equals(model)).toBe(true);
    return failed;
  } finally {
    await closeNbd(layer, backend);
    await layer.closeAll();
    engine.close();
  }
}

describe('random loads', () => {
  test('qemu-nbd', async (context) => {
    requirePeer(context, 'qemu-nbd');
    await startQemuNbd();
    expect(await load()).toBe(0);
  });

  test('nbdkit', async (context) => {
    requirePeer(context, 'nbdkit');
    await startNbdkit([], []);
    expect(await load()).toBe(0);
  });

  test('nbdkit, every reply late', async (context) => {
    requirePeer(context, 'nbdkit');
    await startNbdkit(['delay'], ['rdelay=3ms', 'wdelay=3ms', 'delay-zero=2ms', 'delay-extents=2ms']);
    expect(await load({ requests: 30 })).toBe(0);
  });

  test('nbdkit, some requests fail', async (context) => {
    requirePeer(context, 'nbdkit');
    await startNbdkit(['error'], ['error=ENOSPC', 'error-rate=5%']);
    expect(await load({ mayFail: true })).toBeGreaterThan(0);
  });

  test('nbdkit without zero writes, extents, structured replies', async (context) => {
    requirePeer(context, 'nbdkit');
    const args = ['--foreground', '--no-sr', '--unix', socketPath, '--filter=nozero', '--filter=noextents'];
    await start('nbdkit', [...args, 'file', disk, 'zeromode=none']);
    expect(await load()).toBe(0);
  });

  test('nbdkit with block sizes', async (context) => {
    requirePeer(context, 'nbdkit');
    const sizes = ['blocksize-minimum=4096', 'blocksize-preferred=64K', 'blocksize-maximum=64K'];
    await startNbdkit(['blocksize-policy'], [...sizes, 'blocksize-error-policy=error']);
    expect(await load()).toBe(0);
  });

  test('this daemon, with extended headers', async () => {
    await startSelf();
    expect(await load()).toBe(0);
  });
});

describe('the server is killed and started again under load', () => {
  const cases: readonly [string, () => Promise<Server>, 'qemu-nbd' | 'nbdkit' | null, object?][] = [
    ['qemu-nbd', startQemuNbd, 'qemu-nbd'],
    ['qemu-nbd with TLS', startQemuNbdWithTls, 'qemu-nbd', { 'tls-creds': 't' }],
    ['nbdkit', () => startNbdkit(['delay'], ['rdelay=1ms', 'wdelay=1ms']), 'nbdkit'],
    ['this daemon', startSelf, null],
  ];
  for (const [name, startServer, peer, options = {}] of cases) {
    test(name, async (context) => {
      if (peer !== null) requirePeer(context, peer);
      let server = await startServer();
      let kills = 0;
      const meanwhile = async (isOver: () => boolean): Promise<void> => {
        while (!isOver() && kills < 6) {
          await pause(60);
          await server.kill();
          kills++;
          await pause(50);
          server = await startServer();
        }
      };
      const failed = await load({ options: { 'reconnect-delay': 60, ...options }, requests: 400, meanwhile });
      expect(failed).toBe(0);
      expect(kills).toBeGreaterThan(1);
    });
  }
});

describe('the image tools', () => {
  const tool = (name: string, ...args: readonly string[]): string =>
    execFileSync(path.join(repositoryRoot, 'daemon/bin', name), args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
    });

  test('convert from and to NBD names', async (context) => {
    requirePeer(context, 'qemu-nbd', 'qemu-img');
    const content = Buffer.alloc(4 * MiB);
    for (let i = 0; i < content.length; i += 4096) content.writeUInt32LE((i % 3) * i, i);
    writeFileSync(disk, content);
    await startQemuNbd();
    const uri = `nbd+unix:///?socket=${socketPath}`;
    const image = path.join(dir, 'copy.qcow2');
    tool('qblock-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, image);
    expect(spawnSync('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', '-U', image, disk]).status).toBe(0);
    tool('qblock-io', '-f', 'raw', '-c', 'write -P 9 1M 1M', '-c', 'flush', `nbd:unix:${socketPath}`);
    expect(
      readFileSync(disk)
        .subarray(MiB, 2 * MiB)
        .every((byte) => byte === 9),
    ).toBe(true);
    tool('qblock-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', image, uri);
    expect(readFileSync(disk).equals(content)).toBe(true);
    expect(tool('qblock-img', 'compare', '-f', 'qcow2', '-F', 'raw', image, uri)).toBe(
      'Images are identical.\n',
    );
  });
});
