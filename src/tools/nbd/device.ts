/**
 * `--connect` and `--disconnect`: the kernel's NBD client, by its command nbd-client where it is there.
 *
 * The kernel takes a connected socket over netlink or by an ioctl on its device; both need the module nbd.
 */

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import type { SocketAddress } from '../../../schema/generated/types.ts';
import { BlockError } from '../../errors/error.ts';
import type { NbdOptions } from './options.ts';

/** Throws unless the kernel has the device and there is a program to tell it. */
function checkKernel(device: string): void {
  if (!existsSync('/sys/module/nbd') && !existsSync('/sys/block/nbd0'))
    throw new BlockError(
      `Failed to open ${device}: the kernel has no NBD support (is the module nbd loaded?)`,
    );
  if (!existsSync(device)) throw new BlockError(`Failed to open ${device}: No such file or directory`);
  const { error } = spawnSync('nbd-client', ['-V'], { stdio: 'ignore' });
  if (error !== undefined)
    throw new BlockError('Connecting a device needs the program nbd-client (package nbd-client)');
}

function nbdClient(words: readonly string[], what: string): void {
  const { status, stderr } = spawnSync('nbd-client', words, { encoding: 'utf8' });
  if (status !== 0)
    throw new BlockError(`${what}: ${stderr.trim() || `nbd-client ended with status ${status}`}`);
}

/** Connects the device to the server; resolves when the device is there. Returns what disconnects it. */
export async function connectDevice(
  device: string,
  address: SocketAddress,
  { exportName, readOnly }: NbdOptions,
): Promise<() => Promise<void>> {
  checkKernel(device);
  const where =
    address.type === 'unix'
      ? ['-unix', address.path, device]
      : address.type === 'inet'
        ? [address.host === '0.0.0.0' ? '127.0.0.1' : address.host, address.port, device]
        : [device];
  const name = ['-N', exportName];
  // The server is in this very process: it must go on serving while the client shakes hands.
  const { spawn } = await import('node:child_process');
  await new Promise<void>((resolve, reject) => {
    const child = spawn('nbd-client', [...where, ...name, ...(readOnly ? ['-R'] : [])], { stdio: 'ignore' });
    child.on('error', reject);
    child.on('exit', (status) =>
      status === 0
        ? resolve()
        : reject(new BlockError(`Failed to connect ${device}: nbd-client ended with status ${status}`)),
    );
  });
  return () => disconnectDevice(device);
}

export async function disconnectDevice(device: string): Promise<void> {
  checkKernel(device);
  nbdClient(['-d', device], `Failed to disconnect ${device}`);
}
