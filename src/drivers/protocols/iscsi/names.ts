/**
 * Names of iSCSI disks: iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN, and iser:// (which is not supported).
 *
 * Source of the facts: QEMU documentation, "iSCSI LUNs".
 */

import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { percentDecoded } from '../../net/percent.ts';

/** The password of a name; the schema does not have it. */
export const PASSWORD_OPTION = 'password';

/** Options for a name that starts with "iscsi:". */
export function parseName(name: string): DriverOptions {
  const match =
    /^(iscsi|iser):\/\/(?:([^@%/]*)(?:%([^@/]*))?@)?(\[[^\]/]+\](?::\d+)?|[^/@[\]]+)\/([^/?]+)\/(\d+)(?:\?.*)?$/.exec(
      name,
    );
  if (match === null) {
    const shown = name.replace(/%[^@/]*@/, '@');
    throw new BlockError(`Failed to parse URL : ${shown}`, { errno: E.EINVAL });
  }
  const [, scheme, user, password, portal, target = '', lun] = match;
  return {
    transport: scheme === 'iser' ? 'iser' : 'tcp',
    portal,
    target: percentDecoded(target),
    lun,
    ...(user !== undefined && user !== '' && { user: percentDecoded(user) }),
    ...(password !== undefined && { [PASSWORD_OPTION]: percentDecoded(password) }),
  };
}

export const iscsiNames = {
  namePrefixes: ['iser'],
  parseName: (rest, prefix) => parseName(prefix === '' ? rest : `${prefix}:${rest}`),
  nameOptions: [PASSWORD_OPTION],
} as const satisfies NameCallbacks;
