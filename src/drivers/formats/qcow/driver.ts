/**
 * qcow: QEMU's first copy-on-write format; the driver record. The layout is header.ts.
 *
 * Blocks are mapped by the shared code (mapped-image.ts, two-level.ts): data is on the disk before a table names it, so
 * a crash leaks clusters at most. Compressed clusters are unpacked when they are written to.
 * Unlike the original's, encrypted images (AES with a plain key, which protects nothing) are opened read-only.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { closeMapped } from '../shared/write-back.ts';
import { creation } from './create.ts';
import { map, type QcowState } from './map.ts';
import { open } from './open.ts';
import { pwritevCompressed, unpackRange } from './packed-write.ts';
import { probeQcow } from './probe.ts';

const shared = mappedCallbacks(map);

export const qcow: BlockDriver<QcowState> = {
  name: 'qcow',
  ...shared,
  supportsBacking: true,
  strongOptions: ['encrypt.key-secret'],
  probe: probeQcow,
  creation,
  open,
  async close(node) {
    await closeMapped(map, node);
    node.state.cipher?.close();
  },
  mutableOptions: { encrypt: 'refused' },
  async reopenPrepare(node, context) {
    if (node.state.isEncrypted && !context.settings.readOnly)
      throw new BlockError('AES-encrypted qcow images can only be opened read-only', { errno: E.ENOTSUP });
    return shared.reopenPrepare(node, context);
  },
  reopenCommit: () => undefined,
  childPermissions: formatChildPermissions,
  refreshLimits({ state }, limits) {
    if (state.isEncrypted) limits.requestAlignment = Math.max(limits.requestAlignment, 512);
  },
  isEncrypted: ({ state }) => state.isEncrypted,
  backingName: ({ state }) => state.backing,
  async pwritev(node, guard, offset, bytes, vec, flags) {
    await unpackRange(node, guard, offset, bytes);
    await shared.pwritev!(node, guard, offset, bytes, vec, flags);
  },
  pwritevCompressed,
  getLength: async ({ state }) => state.header.size,
  getInfo: async ({ state }) => ({ clusterSizeBytes: state.table.blockBytes }),
};
