/** qblock-nbd: serves an image over NBD, or lists what another server offers. */

import { spawn } from 'node:child_process';
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs';
import path from 'node:path';
import type { SocketAddress } from '../../../schema/generated/types.ts';
import { SLOW_WRITE_MS } from '../../block/layer.ts';
import { BlockError, errnoError, errnoOf, InvariantError } from '../../errors/error.ts';
import { addObject, type ToolEnvironment } from '../common/environment.ts';
import type { ToolOutput } from '../common/output.ts';
import { runProgram } from '../common/program.ts';
import { connectDevice, deviceIndex, disconnectDevice } from './device.ts';
import { list } from './list.ts';
import { Finished, type NbdOptions, OptionProblem, readCommandLine } from './options.ts';
import { serve } from './serve.ts';

/** Set in the process that --fork makes: it says on this descriptor that it serves. */
const READY_FD = 'QBLOCK_NBD_READY_FD';
const FIRST_PASSED_FD = 3;

/** Where a server for a device of the kernel listens, when nothing else is said. */
const DEVICE_SOCKETS = '/var/lock';

function addressOf({ mode, device, socket, bind, port }: NbdOptions): SocketAddress {
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  if (LISTEN_PID === String(process.pid) && LISTEN_FDS !== undefined) {
    if (LISTEN_FDS !== '1')
      throw new BlockError('qblock-nbd does not support socket activation with LISTEN_FDS > 1');
    return { type: 'fd', str: String(FIRST_PASSED_FD) };
  }
  if (mode === 'connect' && socket === null)
    return { type: 'unix', path: `${DEVICE_SOCKETS}/qemu-nbd-${path.basename(device!)}` };
  return socket !== null ? { type: 'unix', path: socket } : { type: 'inet', host: bind, port };
}

/** What --list connects to: nobody listens on "any address". */
function listAddressOf(options: NbdOptions, words: readonly string[]): SocketAddress {
  const address = addressOf(options);
  const given = words.some((word) => /^(-b|--b)/.test(word));
  return address.type === 'inet' && !given ? { ...address, host: 'localhost' } : address;
}

function writePidFile(name: string): () => void {
  const file = path.resolve(name);
  try {
    const fd = openSync(file, 'w', 0o644);
    writeSync(fd, `${process.pid}\n`);
    closeSync(fd);
  } catch (error) {
    throw errnoError(`Could not create '${name}'`, errnoOf(error));
  }
  return () => {
    try {
      unlinkSync(file);
    } catch {
      // Gone already.
    }
  };
}

/** --fork: the same program in the background; resolves with the exit status once it serves or has failed. */
function runInBackground(): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, process.argv.slice(1), {
      detached: true,
      stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
      env: { ...process.env, [READY_FD]: '3' },
    });
    child.stdio[3]?.on('data', () => resolve(0));
    child.on('exit', (status) => resolve(status ?? 1));
  });
}

function tellReady(): void {
  const fd = process.env[READY_FD];
  if (fd === undefined) return;
  writeSync(Number(fd), 'ready');
  closeSync(Number(fd));
}

async function run(
  words: readonly string[],
  output: ToolOutput,
  environment: () => ToolEnvironment,
): Promise<number> {
  const options = readCommandLine(output, words);
  const isBackground = options.fork || (options.mode === 'connect' && !options.verbose);
  if (isBackground && process.env[READY_FD] === undefined) return runInBackground();
  if (options.mode === 'disconnect') {
    await disconnectDevice(options.device!);
    output.print(`${options.device} disconnected\n`);
    return 0;
  }
  const env = environment();
  // Clients wait for their turn.
  env.layer.slowWriteMs = SLOW_WRITE_MS;
  env.untrusted = options.untrusted;
  for (const object of options.objects) if (await addObject(env, object)) return 0;
  if (options.mode === 'list') {
    await list(env, options, listAddressOf(options, words));
    return 0;
  }
  const stop = new Promise<void>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => resolve());
  });
  // Nothing is served for a device that is not there.
  if (options.mode === 'connect') deviceIndex(options.device!, 'Failed to open');
  const service = await serve(env, options, addressOf(options));
  const removePidFile = options.pidFile === null ? () => undefined : writePidFile(options.pidFile);
  let disconnect: () => Promise<void> = () => Promise.resolve();
  if (options.mode === 'connect') {
    try {
      disconnect = await connectDevice(env, options.device!, service.addresses[0]!, options.exportName);
    } catch (error) {
      await service.close();
      removePidFile();
      throw error;
    }
  }
  tellReady();
  const isStopped = await Promise.race([service.ended.then(() => false), stop.then(() => true)]);
  // Otherwise the kernel has gone by itself.
  if (isStopped) await disconnect();
  await service.close();
  removePidFile();
  return 0;
}

function failureStatus(error: unknown, output: ToolOutput): number {
  if (error instanceof Finished) return error.status;
  output.error(
    error instanceof InvariantError
      ? `internal error: ${error.stack}`
      : error instanceof OptionProblem
        ? error.message
        : error,
  );
  return 1;
}

void runProgram('qblock-nbd', run, failureStatus);
