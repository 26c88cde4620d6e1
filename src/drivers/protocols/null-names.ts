/** Image names of null-co and null-aio: there is one for each. The disks are null.ts. */

import type { NameCallbacks } from '../../block/contract/names.ts';
import { BlockError } from '../../errors/error.ts';

function namesOf(driver: 'null-co' | 'null-aio'): Required<Pick<NameCallbacks, 'parseName'>> {
  return {
    parseName(rest, prefix) {
      if (prefix === driver && rest === '//') return {};
      throw new BlockError(`The only allowed filename for this driver is '${driver}://'`);
    },
  };
}

export const nullCoNames = namesOf('null-co');
export const nullAioNames = namesOf('null-aio');
