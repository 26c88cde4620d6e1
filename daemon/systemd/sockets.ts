/**
 * Sockets that the service manager has opened for us (socket activation): found by the names it gives them.
 *
 * Source of the facts: sd_listen_fds(3).
 */

import { keepFromChildren } from '../../src/aio/host/datagram.ts';
import { BlockError } from '../../src/errors/error.ts';

/** The first descriptor that is passed. */
const FIRST_FD = 3;
const MAX_FDS = 1024;

/** Descriptors by name. */
export type PassedSockets = ReadonlyMap<string, readonly number[]>;

/**
 * The sockets passed to the process `pid`. Takes the variables out of `env`, and the descriptors out of the reach of
 * children. A socket without a name is called "unknown", as by the manager.
 */
export function takePassedSockets(
  env: NodeJS.ProcessEnv,
  pid: number,
  protect: (fd: number) => unknown = keepFromChildren,
): PassedSockets {
  const { LISTEN_PID: owner, LISTEN_FDS: count = '', LISTEN_FDNAMES: text = '' } = env;
  for (const key of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete env[key];
  const sockets = new Map<string, number[]>();
  if (owner !== String(pid) || !/^\d{1,4}$/.test(count)) return sockets;
  const names = text === '' ? [] : text.split(':');
  for (let index = 0; index < Math.min(Number(count), MAX_FDS); index++) {
    const name = names[index] || 'unknown';
    const fd = FIRST_FD + index;
    protect(fd);
    sockets.set(name, [...(sockets.get(name) ?? []), fd]);
  }
  return sockets;
}

/** The one descriptor of that name, as text; throws when there is none, or more than one. */
export function passedSocket(sockets: PassedSockets, name: string): string {
  const [fd, ...others] = sockets.get(name) ?? [];
  if (fd === undefined) {
    const known = [...sockets.keys()].map((other) => `'${other}'`).join(', ');
    throw new BlockError(`No socket '${name}' has been passed to the daemon`, {
      hint: known === '' ? 'None has: see LISTEN_FDS in sd_listen_fds(3)' : `There are: ${known}`,
    });
  }
  if (others.length > 0)
    throw new BlockError(`${others.length + 1} sockets are called '${name}': give each a name of its own`);
  return String(fd);
}
