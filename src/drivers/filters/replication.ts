/**
 * replication: one of a pair of disks of which the second follows the first.
 *
 * Options: `file`, `mode`, `top-id` (secondary only). What starts it, takes checkpoints and ends it are functions of a
 * virtual machine that are no commands of a storage daemon. Without them it is what it is here: reads pass, writes
 * fail, and neither its length nor its options change.
 * Source of the facts: QMP reference, BlockdevOptionsReplication; behaviour of qemu-storage-daemon 7.2.
 */

import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import { Perm, Role } from '../../block/contract/request.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import { passOn } from './pass-on.ts';

function checkOptions({ options }: OpenContext): void {
  const { mode, 'top-id': topId } = options;
  const invalid = (message: string): BlockError => new BlockError(message, { errno: E.EINVAL });
  if (mode === undefined) throw invalid('Missing the option mode');
  if (mode !== 'primary' && mode !== 'secondary')
    throw invalid("The option mode's value should be primary or secondary");
  if (mode === 'primary' && topId !== undefined)
    throw invalid('The primary side does not support option top-id');
  if (mode === 'secondary' && topId === undefined) throw invalid('Missing the option top-id');
}

export const replication: BlockDriver<null> = {
  name: 'replication',
  kind: 'filter',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  strongOptions: ['mode', 'top-id'],
  async open(_node, context) {
    await context.openChild('file', Role.filtered | Role.primary, true);
    checkOptions(context);
    return null;
  },
  childPermissions: ({ readOnly }) => ({
    perm: Perm.consistentRead | (readOnly ? 0 : Perm.write),
    shared: Perm.consistentRead | Perm.write | Perm.writeUnchanged,
  }),
  preadv: passOn.preadv,
  async pwritev() {
    throw ioError(E.EIO);
  },
  async pwriteZeroes() {
    throw ioError(E.EIO);
  },
  async pdiscard() {},
  blockStatus: passOn.blockStatus,
  async truncate() {
    throw new BlockError('Image format driver does not support resize', { errno: E.ENOTSUP });
  },
};
