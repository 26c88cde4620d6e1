/** Image names of vvfat: `fat:[floppy:][12:|16:|32:][rw:]FOLDER`. */

import type { NameCallbacks } from '../../../block/contract/names.ts';

const PARTS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  floppy: { floppy: true },
  '12': { 'fat-type': 12 },
  '16': { 'fat-type': 16 },
  '32': { 'fat-type': 32 },
  rw: { rw: true },
};

export const vvfatNames = {
  namePrefixes: ['fat'],
  parseName(rest) {
    let options: Record<string, unknown> = { 'fat-type': 0, floppy: false, rw: false };
    let left = rest;
    for (;;) {
      const colon = left.indexOf(':');
      const part = colon < 0 ? undefined : PARTS[left.slice(0, colon)];
      if (part === undefined)
        return { 'fat-type': options['fat-type'], dir: left, floppy: options.floppy, rw: options.rw };
      options = { ...options, ...part };
      left = left.slice(colon + 1);
    }
  },
} as const satisfies NameCallbacks;
