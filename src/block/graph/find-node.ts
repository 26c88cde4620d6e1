/** Nodes by the names clients give; what there is not is said in the original's words. */

import { BlockError } from '../../errors/error.ts';
import type { BlockLayer } from '../layer.ts';
import { isRootNode } from './chain.ts';
import type { BlockNode } from './node.ts';

/** The node of that name. `device` is what the client gave as a device's name: there are none, but errors repeat it. */
export function findNode(layer: BlockLayer, name: string, device: string = name): BlockNode {
  const node = layer.findNode(name);
  if (node === null) throw new BlockError(`Cannot find device='${device}' nor node-name='${name}'`);
  return node;
}

/** Throws unless nothing but users of the daemon is above the node. */
export function checkRootNode(node: BlockNode): void {
  if (!isRootNode(node)) throw new BlockError('Need a root block node');
}
