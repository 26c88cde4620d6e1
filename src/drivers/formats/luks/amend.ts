/** Changing the key slots of an open image. The content is not touched, but nobody may read the header meanwhile. */

import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { CreateOptionValues, CreateProgress } from '../../../block/contract/image.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { refreshPermissions } from '../../../block/graph/permissions.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { readLuksInfo } from '../../crypto/luks.ts';
import { amendLuks } from '../../crypto/luks-amend.ts';
import { luksAmendOptions } from '../../crypto/luks-options.ts';
import { hasLuks2Header } from '../../crypto/luks2/header.ts';
import { headerReader } from './io.ts';
import type { LuksNode } from './state.ts';

/** Takes the header for this node alone, and gives it back. */
function claimHeader(node: LuksNode, claimed: boolean): void {
  node.state.changingKeys = claimed;
  try {
    refreshPermissions([node as unknown as BlockNode]);
  } catch (error) {
    node.state.changingKeys = false;
    throw error;
  }
}

/** Changes key slots; values as of LUKS_AMEND_OPTIONS. */
export async function amend(
  node: LuksNode,
  guard: GraphReadGuard,
  values: CreateOptionValues,
  force: boolean,
  progress: CreateProgress,
): Promise<void> {
  const { header, file } = node.state;
  const target = header.node;
  const detached = header !== file;
  const read = headerReader(target, guard);
  if (await hasLuks2Header(read)) {
    throw new BlockError('LUKS version 2: key slots can be changed by cryptsetup only', { errno: E.ENOTSUP });
  }
  const options = luksAmendOptions(values);
  claimHeader(node, true);
  try {
    await progress.checked?.();
    const current = node.settings.options as { readonly 'key-secret'?: string };
    await amendLuks(
      {
        read,
        write: async (offset, data) => {
          const mem = allocateIoMemory(data.length);
          data.copy(mem.buf);
          await co.pwritev(target, guard, offset, data.length, vectorOf(mem), 0);
        },
        flush: () => co.flush(target, guard),
      },
      options,
      {
        passphraseOf: (id) => node.layer.secret(id),
        currentSecret: current['key-secret'] ?? '',
        force,
        detached,
      },
    );
    node.state.info = await readLuksInfo(read, detached);
  } finally {
    claimHeader(node, false);
  }
}
