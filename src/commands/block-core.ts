/** Commands of the block-core module: nodes, their size, and what is known about them. */

import type { BackendOwner } from '../block/contract/backend-io.ts';
import type { DriverOptions } from '../block/contract/image.ts';
import { Perm } from '../block/contract/request.ts';
import { findNode } from '../block/graph/find-node.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { operationBlocker } from '../block/graph/op-blockers.ts';
import type { BlockLayer } from '../block/layer.ts';
import { activate, inactivate, setAllActive } from '../block/open/activation.ts';
import { addNode } from '../block/open/open.ts';
import { allNodeStats, namedBlockNodes } from '../block/query/query.ts';
import { BlockError } from '../errors/error.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** A user of a node for the time of one command. */
const COMMAND_OWNER: BackendOwner = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

async function resize(layer: BlockLayer, node: BlockNode, size: number): Promise<void> {
  if (size < 0) throw new BlockError("Parameter 'size' expects a >0 size");
  // The original means the name of a device, which a node does not have.
  if (operationBlocker(node, 'resize') !== null) throw new BlockError("Device '(null)' is in use");
  const backend = await layer.createBackend(node, { perm: Perm.resize, shared: Perm.all }, COMMAND_OWNER);
  try {
    // Requests to the part that goes are waited for by the truncate itself (a serialising request).
    await backend.truncate(size, false, 'off');
  } finally {
    await backend.close();
  }
}

export const blockCoreCommands = {
  'blockdev-add': async ({ layer }, options) => {
    await addNode(layer, options as unknown as DriverOptions);
    return {};
  },
  'blockdev-del': async ({ layer }, { 'node-name': name }) => {
    await layer.deleteNode(name);
    return {};
  },
  'blockdev-set-active': async ({ layer }, { 'node-name': name, active }) => {
    if (name === undefined) await setAllActive(layer, active);
    else if (active) await activate(findNode(layer, name, ''));
    else await inactivate(findNode(layer, name, ''));
    return {};
  },
  block_resize: async ({ layer }, { device, 'node-name': nodeName, size }) => {
    await resize(layer, findNode(layer, nodeName ?? '', device ?? ''), size);
    return {};
  },
  'query-named-block-nodes': ({ layer }, { flat }) => namedBlockNodes(layer, flat ?? false),
  // Lists devices (frontends); a storage daemon has none.
  'query-block': () => [],
  'query-blockstats': ({ layer }, { 'query-nodes': queryNodes }) =>
    queryNodes === true ? allNodeStats(layer) : [],
} satisfies Pick<
  Handlers<CommandContext>,
  | 'blockdev-add'
  | 'blockdev-del'
  | 'blockdev-set-active'
  | 'block_resize'
  | 'query-named-block-nodes'
  | 'query-block'
  | 'query-blockstats'
>;
