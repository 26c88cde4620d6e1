/**
 * `--connect` and `--disconnect`: the kernel's NBD client. We shake hands with the server, which is in this very process,
 * and give the connection to the kernel over netlink; the device is there then.
 */

import { closeSync, openSync, readFileSync, realpathSync } from 'node:fs';
import path from 'node:path';
import type { SocketAddress } from '../../../schema/generated/types.ts';
import { closeFd } from '../../aio/ffi.ts';
import { exchangeNetlink } from '../../aio/host/netlink.ts';
import { detachDescriptor } from '../../aio/socket-stream.ts';
import { connectTo } from '../../aio/sockets.ts';
import { E, strerror } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';
import { openExport, type RemoteExport } from '../../nbd/client/handshake.ts';
import { ReceiveBuffer } from '../../nbd/protocol/receive-buffer.ts';
import type { ToolEnvironment } from '../common/environment.ts';
import {
  type Answers,
  connectRequest,
  disconnectRequest,
  familyRequest,
  NBD_FAMILY,
  readAnswers,
} from './netlink-messages.ts';

const SECTOR_BYTES = 512;
/** The kernel's client takes no larger blocks than a page. */
const MAX_BLOCK_BYTES = 4096;
/** How long a device may take to show its size. */
const DEVICE_MS = 10_000;
const RETRY_MS = 10;

/** N of /dev/nbdN, which must be there. `verb`: what errors say is not possible. */
export function deviceIndex(device: string, verb: string): number {
  try {
    // Opening a device that is not connected succeeds, too.
    closeSync(openSync(device, 'r'));
  } catch (error) {
    throw errnoError(`${verb} ${device}`, errnoOf(error));
  }
  const [, index] = /^\/dev\/nbd(\d+)$/.exec(realpathSync(device)) ?? [];
  if (index === undefined)
    throw new BlockError(`${verb} ${device}: it is no NBD device of the kernel (/dev/nbdN)`);
  return Number(index);
}

/** Sends a request and waits for its answers; throws what the kernel says. */
async function ask(request: Buffer, what: string): Promise<Answers> {
  const answers: Answers = { errno: null, family: null };
  const failed = await exchangeNetlink(request, (datagram) => {
    readAnswers(datagram, answers);
    return answers.errno !== null;
  });
  if (failed < 0) throw errnoError(what, -failed);
  if (answers.errno !== 0) throw errnoError(what, answers.errno ?? E.EIO);
  return answers;
}

/** The number that the kernel gave the family; throws when it knows none of that name. */
export async function familyNumber(name: string): Promise<number> {
  try {
    const { family } = await ask(familyRequest(name), `The kernel does not answer for '${name}'`);
    if (family !== null) return family;
  } catch (error) {
    if (errnoOf(error) !== E.ENOENT) throw error;
  }
  throw new BlockError(
    `The kernel has no netlink family '${name}': is its module loaded (modprobe ${name}), and 4.12 or newer?`,
    { errno: E.ENOENT },
  );
}

interface Handed {
  readonly fd: number;
  readonly exp: RemoteExport;
}

/** Connects and shakes hands; the descriptor is the caller's. */
async function shakeHands(
  { layer }: ToolEnvironment,
  address: SocketAddress,
  exportName: string,
): Promise<Handed> {
  const isAny = address.type === 'inet' && ['0.0.0.0', '::'].includes(address.host);
  const reachable = isAny ? { ...address, host: address.host === '::' ? '::1' : '127.0.0.1' } : address;
  const socket = await connectTo(reachable, { pauseOnConnect: true });
  socket.on('error', () => socket.destroy());
  socket.setNoDelay(true);
  const stream = layer.engine.adoptSocket(socket);
  try {
    const wishes = { exportName, context: '', simple: true, startTls: null };
    const { exp } = await openExport(stream, new ReceiveBuffer(), wishes);
    return { fd: detachDescriptor(stream), exp };
  } catch (error) {
    stream.close();
    throw error;
  }
}

/** Makes the export the device's content; resolves when the device is there. Returns what disconnects it. */
export async function connectDevice(
  env: ToolEnvironment,
  device: string,
  address: SocketAddress,
  exportName: string,
): Promise<() => Promise<void>> {
  const failed = `Failed to connect ${device}`;
  const index = deviceIndex(device, 'Failed to open');
  const family = await familyNumber(NBD_FAMILY);
  const { fd, exp } = await shakeHands(env, address, exportName);
  try {
    const blockSizeBytes = Math.min(Math.max(exp.minBlockBytes, SECTOR_BYTES), MAX_BLOCK_BYTES);
    const { sizeBytes, flags: serverFlags } = exp;
    await ask(
      connectRequest(family, { index, sizeBytes, blockSizeBytes, serverFlags, sockets: [fd] }),
      failed,
    );
  } finally {
    // The kernel has the connection's own reference.
    closeFd(fd);
  }
  await untilThere(index, exp.sizeBytes, failed);
  return async () => {
    await ask(disconnectRequest(family, index), `Failed to disconnect ${device}`);
  };
}

/** Waits until the device shows its size: before, whoever opens it finds it empty. */
async function untilThere(index: number, sizeBytes: number, failed: string): Promise<void> {
  const sectors = Math.floor(sizeBytes / SECTOR_BYTES);
  for (const endMs = performance.now() + DEVICE_MS; performance.now() < endMs; ) {
    if (sectorsOf(index) === sectors) return;
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  throw new BlockError(`${failed}: ${strerror(E.ETIMEDOUT)}`, { errno: E.ETIMEDOUT });
}

function sectorsOf(index: number): number | null {
  try {
    return Number(readFileSync(`/sys/block/nbd${index}/size`, 'latin1'));
  } catch {
    return null;
  }
}

/** Disconnects a device, whoever connected it. */
export async function disconnectDevice(device: string): Promise<void> {
  const index = deviceIndex(device, 'Cannot open');
  await ask(
    disconnectRequest(await familyNumber(NBD_FAMILY), index),
    `Failed to disconnect ${path.basename(device)}`,
  );
}
