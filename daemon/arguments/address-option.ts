/**
 * Option arguments of the form ADDRESS[,KEY=VALUE...], commas doubled within each part: --qmp and --metrics. What the
 * addresses and keys are is theirs.
 */

import { BlockError } from '../../src/errors/error.ts';

export interface AddressOption {
  readonly address: string;
  readonly pairs: readonly { readonly key: string; readonly value: string }[];
}

export function splitAddressOption(text: string): AddressOption {
  const [address = '', ...parts] = text
    .replaceAll(',,', '\0')
    .split(',')
    .map((part) => part.replaceAll('\0', ','));
  const pairs = parts.map((part) => {
    const [key = '', ...values] = part.split('=');
    return { key, value: values.join('=') };
  });
  return { address, pairs };
}

/** HOST:PORT, with brackets around an IPv6 address; null: it is not of that form. */
export function splitHostPort(text: string): { readonly host: string; readonly port: string } | null {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):([^:]+)$/.exec(text);
  return match === null ? null : { host: match[1] ?? match[2] ?? '', port: match[3] ?? '' };
}

export function onOff(key: string, value: string): boolean {
  if (value !== 'on' && value !== 'off') throw new BlockError(`Parameter '${key}' expects 'on' or 'off'`);
  return value === 'on';
}
