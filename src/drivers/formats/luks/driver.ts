/**
 * luks: an encrypted disk, as cryptsetup makes it.
 *
 * On disk: the header with key slots (src/drivers/crypto: version 1 is luks-header.ts, version 2 luks2/header.ts), and at
 * the offset it names the content, sector by sector encrypted. There is no allocation: every byte has its place. With
 * the option `header` the header is in another node and the content begins where that says, mostly at 0.
 * Source of the facts: LUKS1 On-Disk Format Specification 1.2.3, LUKS2 On-Disk Format Specification 1.1.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import { Perm, Req } from '../../../block/contract/request.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { amend } from './amend.ts';
import { creation, measure } from './create.ts';
import { preadv, pwritev, tryPreadv, tryPwritev } from './io.ts';
import { open } from './open.ts';
import { probeLuks } from './probe.ts';
import type { LuksState } from './state.ts';

export const luks: BlockDriver<LuksState> = {
  name: 'luks',
  kind: 'format',
  freshIsNoise: true,
  supportedWriteFlags: Req.fua,
  supportedZeroFlags: 0,
  strongOptions: ['key-secret'],
  probe: probeLuks,
  creation,
  open,
  async close({ state }) {
    state.cipher?.close();
  },
  mutableOptions: {},
  reopenPrepare: async () => undefined,
  childPermissions(node, _roles, wanted) {
    // Before `state` is there the node is being opened.
    const state = node.state as LuksState | undefined;
    if (state?.changingKeys === true) {
      return { perm: wanted.perm | Perm.consistentRead | Perm.write, shared: 0 };
    }
    return { perm: wanted.perm | Perm.consistentRead, shared: wanted.shared };
  },
  refreshLimits({ state }, limits) {
    limits.requestAlignment = Math.max(limits.requestAlignment, state.sectorBytes);
  },
  isEncrypted: () => true,
  specificInfo: ({ state: { info } }) => ({ type: 'luks', data: info }),
  tryPreadv,
  tryPwritev,
  preadv,
  pwritev,
  amend,
  measure,
  async getLength({ state: { file, payloadOffset, payloadBytes } }) {
    const there = file.node.totalBytes - payloadOffset;
    if (there < 0)
      throw new BlockError('LUKS payload begins behind the end of the file', { errno: E.EINVAL });
    return payloadBytes ?? there;
  },
  async truncate(node, guard, length, exact, prealloc, zeroFill) {
    const { file, payloadOffset, payloadBytes } = node.state;
    if (payloadBytes !== null)
      throw new BlockError('The LUKS header says how long the content is', { errno: E.ENOTSUP });
    if (length > Number.MAX_SAFE_INTEGER - payloadOffset)
      throw new BlockError('The requested file size is too large', { errno: E.EFBIG });
    await co.truncate(file.node, guard, payloadOffset + length, exact, prealloc, zeroFill);
  },
  getInfo: async () => ({ clusterSizeBytes: 0 }),
};
