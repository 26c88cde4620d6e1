/**
 * External snapshots: a node's content stays as it is from now on, an overlay takes its place and what is written.
 *
 * Source of the checks and their order: behaviour of the original.
 */

import type { BlockdevSnapshotSync } from '../../../schema/generated/types.ts';
import { Perm, Role } from '../../block/contract/request.ts';
import { chainChild } from '../../block/graph/chain.ts';
import { changeGraph, redirectParents } from '../../block/graph/change.ts';
import { findNode } from '../../block/graph/find-node.ts';
import type { BlockChild, BlockNode } from '../../block/graph/node.ts';
import { checkOperation } from '../../block/graph/op-blockers.ts';
import { cumulativePermissions } from '../../block/graph/permissions.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { nodeFilename } from '../../block/open/filename.ts';
import { openImage } from '../../block/open/open.ts';
import { changeOptions } from '../../block/open/reopen.ts';
import { BlockError } from '../../errors/error.ts';
import { makeImage } from '../new-image.ts';
import type { ActionHandlers, PreparedAction } from './transaction.ts';

/** Puts `overlay` on top of `node`; the result can be taken back. Throws, with nothing changed. */
async function snapshot(node: BlockNode, overlay: BlockNode): Promise<PreparedAction> {
  if ((cumulativePermissions(overlay).perm & Perm.consistentRead) !== 0)
    throw new BlockError('The overlay is already in use');
  if (overlay.driver.kind === 'filter') throw new BlockError('Filters cannot be used as overlays');
  if (chainChild(overlay) !== null) throw new BlockError('The overlay already has a backing image');
  if (overlay.driver.supportsBacking !== true)
    throw new BlockError('The overlay does not support backing images');
  if (!node.readOnly) await wrapped.flush(node);
  const moved = [...node.parents];
  const edge = await changeGraph(node.layer, [node, overlay], (graph) => {
    const backing = graph.attach({ kind: 'node', node: overlay }, 'backing', Role.cow, node);
    redirectParents(graph, node, overlay);
    return backing;
  });
  return { commit: () => makeReadOnly(node), abort: () => undo(node, overlay, edge, moved) };
}

/** Nobody writes to the old image any more; somebody who may write to it all the same keeps it writable. */
async function makeReadOnly(node: BlockNode): Promise<void> {
  try {
    await changeOptions(node, { 'read-only': true });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

function undo(
  node: BlockNode,
  overlay: BlockNode,
  edge: BlockChild,
  moved: readonly BlockChild[],
): Promise<void> {
  return changeGraph(node.layer, [node, overlay], (graph) => {
    graph.detach(edge);
    for (const parent of moved) if (parent.node === overlay) graph.redirect(parent, node);
  });
}

/** Makes the file of the overlay, if that is wanted, and opens it without its backing image. */
async function openOverlay(node: BlockNode, wanted: BlockdevSnapshotSync): Promise<BlockNode> {
  const { layer } = node;
  const { format = 'qcow2', mode = 'absolute-paths' } = wanted;
  const filename = wanted['snapshot-file'];
  const name = wanted['snapshot-node-name'];
  if (mode === 'absolute-paths') {
    const backing = { filename: nodeFilename(node), format: node.driver.name };
    await makeImage(layer, { filename, format, sizeBytes: node.totalBytes, backing });
  }
  const { cache, discardUnmap } = node.settings;
  return openImage(layer, filename, format, {
    ...(name !== undefined && { 'node-name': name }),
    backing: null,
    discard: discardUnmap ? 'unmap' : 'ignore',
    ...((cache.direct || cache.noFlush) && { cache: { direct: cache.direct, 'no-flush': cache.noFlush } }),
  });
}

export const externalSnapshotActions: ActionHandlers<'blockdev-snapshot' | 'blockdev-snapshot-sync'> = {
  'blockdev-snapshot': {
    prepare({ layer }, { node: name, overlay: overlayName }) {
      const node = findNode(layer, name);
      checkOperation(node, 'external-snapshot');
      return snapshot(node, findNode(layer, overlayName));
    },
  },
  'blockdev-snapshot-sync': {
    async prepare({ layer }, data) {
      const { device, 'node-name': nodeName, 'snapshot-node-name': overlayName } = data;
      const node = findNode(layer, nodeName ?? '', device ?? '');
      checkOperation(node, 'external-snapshot');
      if (nodeName !== undefined && overlayName === undefined)
        throw new BlockError('New overlay node-name missing');
      if (overlayName !== undefined && layer.findNode(overlayName) !== null)
        throw new BlockError('New overlay node-name already in use');
      const overlay = await openOverlay(node, data);
      layer.hold(overlay);
      try {
        const prepared = await snapshot(node, overlay);
        // From here on its users hold it; without any it is closed.
        return { ...prepared, clean: () => layer.release(overlay) };
      } catch (error) {
        await layer.release(overlay);
        throw error;
      }
    },
  },
};
