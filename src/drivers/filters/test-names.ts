/** Image names of the filters for tests: `blkdebug:CONFIG:IMAGE` and `blkverify:RAW:IMAGE`. Opening is theirs. */

import type { NameCallbacks } from '../../block/contract/names.ts';
import { BlockError } from '../../errors/error.ts';

export const blkdebugNames = {
  nameOptions: ['x-image'],
  parseName(rest) {
    const colon = rest.indexOf(':');
    if (colon < 0) throw new BlockError('blkdebug requires both config file and image path');
    const config = rest.slice(0, colon);
    return { ...(config !== '' && { config }), 'x-image': rest.slice(colon + 1) };
  },
} as const satisfies NameCallbacks;

export const blkverifyNames = {
  nameOptions: ['x-image', 'x-raw'],
  parseName(rest) {
    const colon = rest.indexOf(':');
    if (colon < 0) throw new BlockError('blkverify requires raw copy and original image path');
    return { 'x-raw': rest.slice(0, colon), 'x-image': rest.slice(colon + 1) };
  },
} as const satisfies NameCallbacks;
