/** Commands that change nodes and the graph while they are in use. */

import type { DriverOptions } from '../block/contract/image.ts';
import { checkRootNode, findNode } from '../block/graph/find-node.ts';
import { setWriteThreshold } from '../block/io/write-threshold.ts';
import { setBackingName } from '../block/open/backing-name.ts';
import { reopenNodes } from '../block/open/reopen.ts';
import { graphWithUsers } from '../block/query/graph-with-users.ts';
import { blockGraph } from '../block/query/query-graph.ts';
import { requestsOf, requestsOfAll } from '../block/query/requests.ts';
import { BlockError } from '../errors/error.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** Records the iothread of a node. */
function setIoThread(
  { layer, objects }: CommandContext,
  name: string,
  ioThread: string | null,
  force: boolean,
): void {
  const node = layer.findNode(name);
  if (node === null) throw new BlockError(`Failed to find node with node-name='${name}'`);
  const inUse = node.parents.some(({ parent }) => parent.kind === 'root' && parent.root.jobId === null);
  if (inUse && !force) {
    throw new BlockError(
      `Node ${name} is associated with a BlockBackend and could be in use (use force=true to override this check)`,
    );
  }
  const object = ioThread === null ? null : objects.find(ioThread);
  if (ioThread !== null && object?.kind !== 'iothread')
    throw new BlockError(`Cannot find iothread ${ioThread}`);
  node.ioThread = ioThread;
}

export const blockGraphCommands = {
  'blockdev-reopen': async ({ layer }, { options }) => {
    await reopenNodes(layer, options as unknown as readonly DriverOptions[]);
    return {};
  },
  'x-debug-query-block-graph': ({ layer }) => blockGraph(layer),
  'x-query-requests': ({ layer }, { 'node-name': name }) =>
    name === undefined ? requestsOfAll(layer) : [requestsOf(findNode(layer, name, ''))],
  'x-query-block-graph': ({ layer, exports }) => graphWithUsers(layer, exports.idsByBackend()),
  'block-set-write-threshold': ({ layer }, { 'node-name': name, 'write-threshold': threshold }) => {
    const node = layer.findNode(name);
    if (node === null) throw new BlockError(`Device '${name}' not found`);
    setWriteThreshold(node, threshold);
    return {};
  },
  'change-backing-file': async ({ layer }, { device, 'image-node-name': image, 'backing-file': name }) => {
    const top = findNode(layer, device);
    checkRootNode(top);
    await setBackingName(top, findNode(layer, image, ''), name);
    return {};
  },
  'x-blockdev-set-iothread': (context, { 'node-name': name, iothread, force }) => {
    setIoThread(context, name, iothread, force ?? false);
    return {};
  },
} satisfies Pick<
  Handlers<CommandContext>,
  | 'blockdev-reopen'
  | 'x-debug-query-block-graph'
  | 'x-query-block-graph'
  | 'x-query-requests'
  | 'block-set-write-threshold'
  | 'change-backing-file'
  | 'x-blockdev-set-iothread'
>;
