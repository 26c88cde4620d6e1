/**
 * Names of images on servers that an address (URL) leads to: the addresses themselves, without what is secret in them.
 * For http, https, ftp and ftps. Source of the facts: names that qemu-img 7.2 shows.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';

/** The address without what opens doors: passwords, and signatures and tokens in the query. */
export function hideSecrets(url: string): string {
  return url
    .replace(/^([a-z0-9+.-]+:\/\/[^/?#@:]*):[^/?#@]*@/i, '$1@')
    .replace(SECRET_PARAMETER, (_match, start: string) => `${start}...`);
}

const SECRET_PARAMETER =
  /([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|awsaccesskeyid|signature|sig|token|access_token|key|password|secret)=)[^&#]+/gi;

/** Options that make an address alone not enough to find the same content. */
const STRONG_OPTIONS = [
  'url',
  'sslverify',
  'username',
  'password-secret',
  'proxy-username',
  'proxy-password-secret',
  'cookie-secret',
] as const;

/** Names of the drivers that were libcurl's: the address, unless other options matter too. */
export const curlNames = {
  strongOptions: STRONG_OPTIONS,
  shownOption: (name, value) => (name === 'url' ? hideSecrets(String(value)) : value),
  exactFilename({ settings: { options } }) {
    const isPlain = [...STRONG_OPTIONS, 'cookie'].every(
      (name) => name === 'url' || options[name] === undefined,
    );
    return isPlain ? hideSecrets(String(options.url)) : null;
  },
} satisfies Partial<BlockDriver>;

/** Faces of the drivers whose names start with their own. */
function namesOf(scheme: string) {
  return {
    parseName: (rest, prefix) => ({ url: prefix === '' ? rest : `${scheme}:${rest}` }),
  } as const satisfies NameCallbacks;
}

export const httpNames = namesOf('http');
export const httpsNames = namesOf('https');
export const ftpNames = namesOf('ftp');
export const ftpsNames = namesOf('ftps');
