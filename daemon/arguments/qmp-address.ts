/**
 * The argument of `--qmp`: ADDRESS[,KEY=VALUE...], with the address one of unix:PATH, tcp:HOST:PORT, ws:HOST:PORT,
 * stdio, and fd:NAME or ws-fd:NAME for a socket that the service manager has passed.
 */

import { BlockError } from '../../src/errors/error.ts';
import { onOff, splitAddressOption, splitHostPort } from './address-option.ts';

export type QmpAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp' | 'ws'; readonly host: string; readonly port: string }
  | { readonly kind: 'fd' | 'ws-fd'; readonly name: string }
  | { readonly kind: 'stdio' };

export interface QmpListenOptions {
  readonly address: QmpAddress;
  readonly pretty: boolean;
  /** WebSocket: the token clients must show; null: one is made up. */
  readonly token: string | null;
  /** WebSocket: the file a made-up token is written to, readable by its owner alone. */
  readonly tokenFile: string | null;
  /** WebSocket: addresses other than those of this host may be listened on. */
  readonly remote: boolean;
}

function parseHostPort(kind: 'tcp' | 'ws', text: string): QmpAddress {
  const place = splitHostPort(text);
  if (place === null) throw new BlockError(`Invalid address '${kind}:${text}', expected: ${kind}:HOST:PORT`);
  return { kind, ...place };
}

function parseAddress(text: string): QmpAddress {
  const colon = text.indexOf(':');
  const kind = colon < 0 ? text : text.slice(0, colon);
  const rest = colon < 0 ? '' : text.slice(colon + 1);
  switch (kind) {
    case 'stdio':
      return { kind };
    case 'unix':
      if (rest === '') throw new BlockError(`Invalid address '${text}', expected: unix:PATH`);
      return { kind, path: rest };
    case 'fd':
    case 'ws-fd':
      if (rest === '') throw new BlockError(`Invalid address '${text}', expected: ${kind}:NAME`);
      return { kind, name: rest };
    case 'tcp':
    case 'ws':
      return parseHostPort(kind, rest);
    default:
      throw new BlockError(
        `Invalid address '${text}', expected: unix:PATH, tcp:HOST:PORT, ws:HOST:PORT, fd:NAME, ws-fd:NAME or stdio`,
      );
  }
}

/** Reads the argument; commas in the path are doubled. */
export function parseQmpOption(text: string): QmpListenOptions {
  const { address, pairs } = splitAddressOption(text);
  let options: QmpListenOptions = {
    address: parseAddress(address),
    pretty: false,
    token: null,
    tokenFile: null,
    remote: false,
  };
  for (const { key, value } of pairs) {
    if (key === 'pretty') options = { ...options, pretty: onOff(key, value) };
    else if (options.address.kind !== 'ws' && options.address.kind !== 'ws-fd')
      throw new BlockError(`Invalid parameter '${key}'`);
    else if (key === 'token' && value !== '') options = { ...options, token: value };
    else if (key === 'token-file') options = { ...options, tokenFile: value };
    else if (key === 'remote') options = { ...options, remote: onOff(key, value) };
    else throw new BlockError(`Invalid parameter '${key}'`);
  }
  return options;
}
