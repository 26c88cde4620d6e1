/**
 * Names of objects: s3://BUCKET/KEY[?endpoint=URL][&region=NAME]. Credentials are never part of a name.
 */

import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

/** Options that a name can have behind its question mark. */
const NAMED_OPTIONS = ['endpoint', 'region'] as const;

/** Options for a name that starts with "s3:". */
export function parseName(name: string): DriverOptions {
  const match = /^s3:\/\/([^/?#]+)\/([^?#]+)(?:\?(.*))?$/.exec(name);
  if (match === null) throw new BlockError('No valid URL specified', { errno: E.EINVAL });
  const [, bucket = '', key = '', query = ''] = match;
  const options: Record<string, string> = { bucket: percentDecoded(bucket), key: percentDecoded(key) };
  for (const pair of query.split('&').filter((text) => text !== '')) {
    const at = pair.indexOf('=');
    const option = at < 0 ? pair : pair.slice(0, at);
    if (!NAMED_OPTIONS.some((known) => known === option))
      throw new BlockError(`Invalid parameter '${option}'`, { errno: E.EINVAL });
    options[option] = percentDecoded(pair.slice(at + 1));
  }
  return options;
}

/** The name that stands for these options. */
export function exactName(options: DriverOptions): string {
  const key = String(options.key).split('/').map(encodeURIComponent).join('/');
  const query = NAMED_OPTIONS.filter((name) => options[name] !== undefined).map(
    (name) => `${name}=${encodeURIComponent(String(options[name]))}`,
  );
  return `s3://${String(options.bucket)}/${key}${query.length > 0 ? `?${query.join('&')}` : ''}`;
}

export const s3Names = {
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
} as const satisfies NameCallbacks;
