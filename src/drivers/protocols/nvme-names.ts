/**
 * Names of NVMe namespaces: nvme://PCI-ADDRESS/NAMESPACE. Source of the facts: QEMU documentation, "NVMe disk images".
 */

import type { NameCallbacks } from '../../block/contract/names.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';

export const nvmeNames = {
  parseName(rest) {
    const match = /^(?:nvme:)?\/\/([^/]+)\/(\d+)$/.exec(rest);
    if (match === null)
      throw new BlockError('A name of this driver is nvme://DDDD:BB:SS.F/NAMESPACE', { errno: E.EINVAL });
    return { device: match[1], namespace: Number(match[2]) };
  },
} as const satisfies NameCallbacks;
