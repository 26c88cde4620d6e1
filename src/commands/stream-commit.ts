/** Commands of schema/stream-commit.json: jobs that move data along a backing chain. */

import type { BlockdevOnError } from '../../schema/generated/types.ts';
import { chainChild, chainEdges, skipFilters } from '../block/graph/chain.ts';
import { checkRootNode, findNode } from '../block/graph/find-node.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { checkOperation } from '../block/graph/op-blockers.ts';
import type { BlockLayer } from '../block/layer.ts';
import { findBackingImage, isInChain } from '../block/open/backing-image.ts';
import { nodeFilename } from '../block/open/filename.ts';
import { BlockError } from '../errors/error.ts';
import { startActiveCommit } from '../jobs/commit/active.ts';
import { startCommit } from '../jobs/commit/commit.ts';
import { startStream } from '../jobs/stream.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** Arguments that both commands have. */
interface JobArguments {
  readonly 'job-id'?: string;
  readonly speed?: number;
  readonly 'on-error'?: BlockdevOnError;
  readonly 'filter-node-name'?: string;
  readonly 'backing-file'?: string;
  readonly 'backing-mask-protocol'?: boolean;
  readonly 'auto-finalize'?: boolean;
  readonly 'auto-dismiss'?: boolean;
}

function jobOptions(args: JobArguments) {
  return {
    // A device's name would be the default; nodes have none.
    id: args['job-id'] ?? '',
    speed: args.speed ?? 0,
    onError: args['on-error'] ?? 'report',
    filterName: args['filter-node-name'] ?? null,
    backingFile: args['backing-file'] ?? null,
    maskProtocol: args['backing-mask-protocol'] ?? false,
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
  } as const;
}

/** The image below `top` with that file name. */
function findBase(top: BlockNode, filename: string): BlockNode {
  const found = findBackingImage(top, filename);
  if (found === null) throw new BlockError(`Can't find '${filename}' in the backing chain`);
  return found;
}

/** The node of a chain right above `node`, which is below `top`. */
function above(top: BlockNode, node: BlockNode | null): BlockNode {
  let at = top;
  for (let edge = chainChild(at); edge !== null && edge.node !== node; edge = chainChild(at)) at = edge.node;
  return at;
}

interface StreamEnds {
  readonly base?: string;
  readonly 'base-node'?: string;
  readonly bottom?: string;
}

/** The last image of the chain that is streamed. */
function streamBottom(layer: BlockLayer, device: BlockNode, ends: StreamEnds): BlockNode {
  const { base, 'base-node': baseNode, bottom } = ends;
  if (bottom !== undefined) {
    const node = findNode(layer, bottom, '');
    if (node.driver.kind === 'filter')
      throw new BlockError(`Node '${bottom}' is a filter, use a non-filter node as 'bottom'`);
    if (!isInChain(device, node))
      throw new BlockError(`Node '${bottom}' is not in a chain starting from '${device.name}'`);
    return node;
  }
  const top = skipFilters(device);
  if (base !== undefined) return above(top, findBase(device, base));
  if (baseNode === undefined) return above(top, null);
  const node = findNode(layer, baseNode, '');
  if (node === top || !isInChain(top, node))
    throw new BlockError(`Node '${baseNode}' is not a backing image of '${device.name}'`);
  return above(top, node);
}

function checkExclusive(args: object, one: string, other: string): void {
  if (one in args && other in args)
    throw new BlockError(`'${one}' and '${other}' cannot be specified at the same time`);
}

/** The node at the top of a chain: nothing but users of the daemon may be above it. */
function findRoot(layer: BlockLayer, device: string): BlockNode {
  const node = layer.findNode(device);
  if (node === null) throw new BlockError(`Device '${device}' not found`, { errorClass: 'DeviceNotFound' });
  checkRootNode(node);
  return node;
}

interface CommitEnds {
  readonly base?: string;
  readonly 'base-node'?: string;
  readonly top?: string;
  readonly 'top-node'?: string;
}

/** The first image that is committed. */
function commitTop(
  layer: BlockLayer,
  device: BlockNode,
  { top, 'top-node': topNode }: CommitEnds,
): BlockNode {
  if (topNode !== undefined) {
    const node = findNode(layer, topNode, '');
    if (!isInChain(device, node)) throw notInChain(node);
    return node;
  }
  if (top === undefined || top === nodeFilename(device) || top === nodeFilename(skipFilters(device)))
    return device;
  const found = findBackingImage(device, top);
  if (found === null) throw new BlockError(`Top image file ${top} not found`);
  return found;
}

/** The image that is committed to. */
function commitBase(layer: BlockLayer, top: BlockNode, ends: CommitEnds): BlockNode {
  const { base, 'base-node': baseNode } = ends;
  const node =
    baseNode !== undefined
      ? findNode(layer, baseNode, '')
      : base !== undefined
        ? findBase(top, base)
        : above(top, null);
  if (!isInChain(top, node)) throw notInChain(node);
  return node;
}

function notInChain(node: BlockNode): BlockError {
  return new BlockError(`'${node.name}' is not in this backing file chain`);
}

export const streamCommitCommands = {
  'block-stream': async ({ layer, jobs }, args) => {
    checkExclusive(args, 'base', 'base-node');
    checkExclusive(args, 'base', 'bottom');
    checkExclusive(args, 'bottom', 'base-node');
    const device = findNode(layer, args.device);
    const bottom = streamBottom(layer, device, args);
    // As the original, which does not look at what is below `bottom`.
    const hasBase = args.base !== undefined || args['base-node'] !== undefined;
    if (args['backing-file'] !== undefined && !hasBase)
      throw new BlockError('backing file specified, but streaming the entire chain');
    await startStream(jobs, { ...jobOptions(args), device, bottom });
    return {};
  },

  'block-commit': async ({ layer, jobs }, args) => {
    const device = findRoot(layer, args.device);
    checkOperation(device, 'commit-source');
    for (const end of ['top', 'base'] as const) {
      if (args[end] !== undefined && args[`${end}-node`] !== undefined)
        throw new BlockError(`'${end}-node' and '${end}' are mutually exclusive`);
    }
    const top = commitTop(layer, device, args);
    const base = commitBase(layer, top, args);
    for (const node of [top, ...chainEdges(top, base).map((edge) => edge.node)])
      checkOperation(node, 'commit-target');
    if (skipFilters(top) === base || top === base) throw new BlockError('cannot commit an image into itself');
    if (skipFilters(top) === skipFilters(device)) {
      if (args['backing-file'] !== undefined)
        throw new BlockError("'backing-file' specified, but 'top' is the active layer");
      await startActiveCommit(jobs, { ...jobOptions(args), top, base });
    } else await startCommit(jobs, { ...jobOptions(args), device, top, base });
    return {};
  },
} satisfies Pick<Handlers<CommandContext>, 'block-stream' | 'block-commit'>;
