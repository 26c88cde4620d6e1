/**
 * Drivers whose devices this program cannot reach. They are known by name and options, and opening says what is missing.
 */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { nvmeNames } from './nvme-names.ts';

function unavailable(name: string, missing: string, instead: string): BlockDriver<never> {
  return {
    name,
    kind: 'protocol',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    open() {
      const text = `Driver '${name}' needs ${missing}, which is not supported here; use ${instead}`;
      throw new BlockError(text, { errno: E.ENOTSUP });
    },
  };
}

const VFIO = 'a PCI device handed over by VFIO';

export const nvme: BlockDriver<never> = {
  ...unavailable('nvme', VFIO, "'host_device' on the kernel's /dev/nvmeXnY"),
  ...nvmeNames,
  strongOptions: ['device'],
};
export const nvmeIoUring = unavailable(
  'nvme-io_uring',
  'NVMe commands through io_uring (/dev/ngXnY)',
  "'io_uring' or 'host_device' on /dev/nvmeXnY",
);
export const virtioBlkVfioPci = unavailable(
  'virtio-blk-vfio-pci',
  VFIO,
  "'host_device' on the kernel's /dev/vdX",
);
export const virtioBlkVhostVdpa = unavailable(
  'virtio-blk-vhost-vdpa',
  'a vhost-vdpa device (/dev/vhost-vdpa-N)',
  "'virtio-blk-vhost-user' with a vhost-user back end, or 'host_device' on a vduse or virtio-vdpa device",
);
