/**
 * File systems that this very process serves (FUSE exports): whoever here asks for a file on one of them waits for
 * himself, for ever. Names are looked at without a question to whoever serves the file.
 *
 * Source of the facts: statx(2), AT_STATX_DONT_SYNC.
 */

import koffi from 'koffi';
import { E } from '../../errors/errno.ts';
import { ioError } from '../../errors/error.ts';
import { hostPath } from './names.ts';

const libc = koffi.load('libc.so.6');
const cStatx = libc.func('statx', 'int', ['int', 'uint8_t*', 'int', 'uint', 'uint8_t*']);

const AT_FDCWD = -100;
const AT_STATX_DONT_SYNC = 0x4000;
const STATX_BYTES = 256;
const DEVICE_MAJOR_AT = 136;
const DEVICE_MINOR_AT = 140;

/** Devices of the file systems, as deviceOf names them; a mount point may be mounted on twice. */
const own = new Map<string, number>();

/** The device a file is on, symbolic links followed; null where there is no such file. */
function deviceOf(name: string): string | null {
  const path = Buffer.concat([Buffer.from(hostPath(name)), Buffer.alloc(1)]);
  const stat = Buffer.alloc(STATX_BYTES);
  if (Number(cStatx(AT_FDCWD, path, AT_STATX_DONT_SYNC, 0, stat)) < 0) return null;
  return `${stat.readUInt32LE(DEVICE_MAJOR_AT)}:${stat.readUInt32LE(DEVICE_MINOR_AT)}`;
}

/** This process serves what is mounted at `place`, until the function returned is called. */
export function ownMount(place: string): () => void {
  const device = deviceOf(place);
  if (device === null) return () => undefined;
  own.set(device, (own.get(device) ?? 0) + 1);
  return () => {
    const left = (own.get(device) ?? 0) - 1;
    if (left > 0) own.set(device, left);
    else own.delete(device);
  };
}

/** Whether a file is served by this process. */
export function isOnOwnMount(name: string): boolean {
  if (own.size === 0) return false;
  const device = deviceOf(name);
  return device !== null && own.has(device);
}

/** Throws EDEADLK when a file is served by this process. */
export function refuseOwnMount(name: string): void {
  if (isOnOwnMount(name)) throw ioError(E.EDEADLK, new Error('served by this very process'));
}
