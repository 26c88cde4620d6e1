/**
 * pr-manager-helper: a connection to a helper that carries out persistent reservations (SCSI PERSISTENT RESERVE IN and
 * OUT) for disks that are passed through, such as qemu-pr-helper.
 *
 * Only the beginning of the protocol is here (source: "Persistent reservation helper protocol" of QEMU's manual, big-endian):
 *   helper to client  4 bytes  features that it has
 *   client to helper  4 bytes  features that are wanted: none
 * Commands would follow, each with the disk's descriptor. Nothing in a storage daemon sends them: its exports have no
 * SG_IO. So a connection, once made, is held and says nothing, here as in the original's daemon.
 */

import type { Socket } from 'node:net';
import type { ObjectOptions } from '../../schema/generated/types.ts';
import { connectTo } from '../aio/sockets.ts';
import { BlockError, reasonOf } from '../errors/error.ts';
import { type QomObject, stringProperty } from './qom.ts';

export type PrManagerOptions = Extract<ObjectOptions, { 'qom-type': 'pr-manager-helper' }>;

const FEATURES_BYTES = 4;
/** A helper speaks first and at once. The original waits for ever, with everybody else. */
const HANDSHAKE_LIMIT_MS = 5000;

/** Resolves when the helper has told its features; rejects when it leaves or says nothing. */
function featuresOf(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    let receivedBytes = 0;
    const limit = setTimeout(() => end('Timed out'), HANDSHAKE_LIMIT_MS);
    const stop = (): void => {
      clearTimeout(limit);
      socket.removeAllListeners();
    };
    const end = (text: string): void => {
      stop();
      reject(new BlockError(text));
    };
    socket.on('data', (bytes) => {
      receivedBytes += bytes.length;
      if (receivedBytes < FEATURES_BYTES) return;
      stop();
      resolve();
    });
    socket.on('close', () => end('Unexpected end-of-file before all data were read'));
    socket.on('error', (error) => end(`Unable to read from socket: ${reasonOf(error)}`));
  });
}

/**
 * Connects. `connected` is told whether the helper can be talked to once a connection was made. Throws in the original's
 * words when there is no helper, or none that speaks as one.
 */
export async function createPrManager(
  options: PrManagerOptions,
  connected: (isConnected: boolean) => void,
): Promise<{ readonly close: () => void; readonly qom: QomObject }> {
  const record = { path: options.path };
  const socket = await connectTo({ type: 'unix', path: record.path });
  try {
    await featuresOf(socket);
  } catch (error) {
    socket.destroy();
    connected(false);
    throw error;
  }
  socket.on('error', () => undefined).resume();
  socket.write(Buffer.alloc(FEATURES_BYTES));
  // A helper that leaves is not missed before there is a command for it.
  socket.unref();
  connected(true);
  const qom = { typeName: 'pr-manager-helper', accessors: { path: stringProperty(record, 'path', 'path') } };
  return { close: () => socket.destroy(), qom };
}
