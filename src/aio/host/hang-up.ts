/** Whether a peer has gone whose socket nobody reads at the moment: node notices that only by reading. */

import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { pollNow } from '../ffi.ts';

const POLLERR = 8;
const POLLHUP = 0x10;
const POLLRDHUP = 0x2000;

/** True when the peer has closed its end. Over TCP one that only sends no more counts as well: the two look alike. */
export function hasHungUp(socket: Duplex): boolean {
  const { _handle: handle, remoteAddress } = socket as Socket & {
    readonly _handle?: { readonly fd?: number } | null;
  };
  if (typeof handle?.fd !== 'number' || handle.fd < 0) return socket.destroyed;
  const dead = POLLERR | POLLHUP | (remoteAddress === undefined ? 0 : POLLRDHUP);
  return (pollNow(handle.fd, POLLRDHUP) & dead) !== 0;
}
