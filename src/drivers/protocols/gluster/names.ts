/**
 * Names of files on Gluster volumes:
 *
 *   gluster[+tcp|+rdma]://[HOST[:PORT]]/VOLUME/PATH    gluster+unix:///VOLUME/PATH?socket=FILE
 *
 * Source of the facts: QEMU documentation, "GlusterFS disk images"; error texts from qemu-img 7.2.
 */

import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

/** The name as it was given, which is what is shown; the schema does not have it. */
export const NAME_OPTION = '=name';

const DEFAULT_HOST = 'localhost';
const DEFAULT_PORT = '24007';
const MAX_PORT = 65_535;
const USAGE =
  'Usage: file=gluster[+transport]://[host[:port]]volume/path[?socket=...]' +
  '[,file.debug=N][,file.logfile=/path/filename.log]';

function serverOf(transport: string, host: string, port: string | undefined, query: string | undefined) {
  if (transport === 'unix') {
    const socket = /^socket=([^&]*)$/.exec(query ?? '');
    return host !== '' || socket === null
      ? null
      : { type: 'unix', path: percentDecoded(socket[1] as string) };
  }
  if (query !== undefined || Number(port ?? 0) > MAX_PORT) return null;
  const name = percentDecoded(host.replace(/^\[(.*)\]$/, '$1'));
  return { type: 'inet', host: name || DEFAULT_HOST, port: Number(port ?? 0) > 0 ? port : DEFAULT_PORT };
}

/** Options for a name that starts with "gluster". */
export function parseName(name: string): DriverOptions {
  const match =
    /^gluster(?:\+(tcp|rdma|unix))?:(?:\/\/(\[[^\]/]*\]|[^:/?#]*)(?::(\d*))?\/+|(?!\/\/)\/?)([^/?#]+)\/+([^/?#][^?#]*)(?:\?([^#]*))?(?:#.*)?$/.exec(
      name,
    );
  const [, transport = 'tcp', host = '', port, volume = '', path = '', query] = match ?? [];
  const server = match === null ? null : serverOf(transport, host, port, query);
  if (server === null) throw new BlockError(`invalid URI ${name}`, { errno: E.EINVAL, hint: USAGE });
  return {
    volume: percentDecoded(volume),
    path: percentDecoded(path),
    server: [server],
    [NAME_OPTION]: name,
  };
}

export const glusterNames = {
  namePrefixes: ['gluster+tcp', 'gluster+unix', 'gluster+rdma'],
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
  nameOptions: [NAME_OPTION],
} as const satisfies NameCallbacks;
