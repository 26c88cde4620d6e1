/** Commands of schema/test-drivers.json: children that come and go. */

import { addChild, removeChild } from '../block/graph/child-list.ts';
import { findNode } from '../block/graph/find-node.ts';
import { BlockError } from '../errors/error.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

export const testDriverCommands = {
  'x-blockdev-change': async ({ layer }, { parent: parentName, child, node: nodeName }) => {
    const parent = findNode(layer, parentName);
    if (child !== undefined && nodeName !== undefined)
      throw new BlockError('The parameters child and node are in conflict');
    if (child !== undefined) {
      await removeChild(parent, child);
      return {};
    }
    if (nodeName === undefined) throw new BlockError('Either child or node must be specified');
    const node = layer.findNode(nodeName);
    if (node === null) throw new BlockError(`Node '${nodeName}' not found`);
    await addChild(parent, node);
    return {};
  },
} satisfies Pick<Handlers<CommandContext>, 'x-blockdev-change'>;
