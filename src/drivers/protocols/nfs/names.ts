/**
 * Names of files on NFS servers: nfs://HOST/PATH[?uid=N&gid=N&tcp-syncnt=N&readahead=N&pagecache=N&debug=N].
 *
 * Source of the facts: QEMU documentation; error texts from qemu-img 7.2.
 */

import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

const PARAMETERS: Readonly<Record<string, string>> = {
  uid: 'user',
  gid: 'group',
  'tcp-syncnt': 'tcp-syn-count',
  readahead: 'readahead-size',
  pagecache: 'page-cache-size',
  debug: 'debug',
};

function einval(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Options for a name that starts with "nfs:". */
export function parseName(name: string): DriverOptions {
  const match = /^nfs:\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?(?:#.*)?$/.exec(name);
  if (match === null) throw einval('Invalid URI specified');
  const [, host = '', path, query = ''] = match;
  if (host === '' || path === undefined) throw einval('Invalid URI specified');
  const options: Record<string, unknown> = {
    server: { type: 'inet', host: percentDecoded(host) },
    path: percentDecoded(path),
  };
  for (const pair of query.split('&')) {
    if (pair === '') continue;
    const [key = '', value] = pair.split('=').map(percentDecoded);
    const option = PARAMETERS[key];
    if (value === undefined) throw einval(`Value for NFS param expected: ${key}`);
    if (!/^\d+$/.test(value)) throw einval(`Illegal value for NFS parameter: ${key}`);
    if (option === undefined) throw einval(`Unknown NFS parameter name: ${key}`);
    options[option] = value;
  }
  return options;
}

/** The URI that stands for these options. */
export function exactName(options: DriverOptions): string {
  const { host } = options.server as { readonly host: string };
  const pairs = Object.entries(PARAMETERS)
    .filter(([, option]) => options[option] !== undefined)
    .map(([key, option]) => `${key}=${String(options[option])}`);
  return `nfs://${host}${String(options.path)}${pairs.length === 0 ? '' : `?${pairs.join('&')}`}`;
}

export const nfsNames = {
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
} as const satisfies NameCallbacks;
