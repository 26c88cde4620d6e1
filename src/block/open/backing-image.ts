/**
 * Backing images by name: which node of a chain a file name means, and what an image is to say of its backing file.
 *
 * For monitor code, and for requests that hold the graph lock.
 */

import { realpathSync } from 'node:fs';
import path from 'node:path';
import { hostPath, textOfBytes } from '../../aio/host/names.ts';
import { isOnOwnMount } from '../../aio/host/own-mounts.ts';
import type { BackingName } from '../contract/image.ts';
import { chainChild, cowChild, skipFilters } from '../graph/chain.ts';
import type { BlockNode } from '../graph/node.ts';
import { wrapped } from '../io/callbacks.ts';
import { exactFilename, nodeFilename } from './filename.ts';
import { absoluteBackingName, protocolPrefix } from './image-name.ts';

/**
 * The node below `top` that `filename` names: as the node itself is called, or as seen from the image above it. Null
 * when there is none.
 */
export function findBackingImage(top: BlockNode, filename: string): BlockNode | null {
  for (let node = skipFilters(top); ; ) {
    const edge = cowChild(node);
    if (edge === null) return null;
    const below = skipFilters(edge.node);
    if (filename === nodeFilename(below) || isSameFile(node, filename, below)) return below;
    node = below;
  }
}

/** Whether `filename`, as seen from the image in `overlay`, is the file of `node`. */
function isSameFile(overlay: BlockNode, filename: string, node: BlockNode): boolean {
  const own = exactFilename(node);
  if (own === null || protocolPrefix(filename) !== null || protocolPrefix(own) !== null) return false;
  if (!path.isAbsolute(filename) && exactFilename(overlay) === null) return false;
  try {
    return realPath(absoluteBackingName(overlay, filename)) === realPath(own);
  } catch {
    // A name that leads nowhere, or is relative to an image whose place is not known.
    return false;
  }
}

/** Whether two names are those of one file. */
export function isSameName(one: string, other: string): boolean {
  if (one === other) return true;
  if (protocolPrefix(one) !== null || protocolPrefix(other) !== null) return false;
  if (isOnOwnMount(one) || isOnOwnMount(other)) return false;
  try {
    return realPath(one) === realPath(other);
  } catch {
    return false;
  }
}

function realPath(name: string): string {
  return textOfBytes(realpathSync(hostPath(name), 'buffer'));
}

/** Whether `node` is below `top` in its chain. */
export function isInChain(top: BlockNode, node: BlockNode): boolean {
  for (let at: BlockNode | undefined = top; at !== undefined; at = chainChild(at)?.node)
    if (at === node) return true;
  return false;
}

/**
 * What an image over `node` says of it, unless the user wants another `filename` to be written there. `maskProtocol`: the
 * format is raw where it would be the name of a protocol.
 */
export function backingNameOf(node: BlockNode, filename: string | null, maskProtocol = false): BackingName {
  const image = skipFilters(node);
  const isMasked = maskProtocol && image.driver.kind === 'protocol';
  return { filename: filename ?? nodeFilename(image), format: isMasked ? 'raw' : image.driver.name };
}

/**
 * Writes into the image in `node` what it says of its backing file. All that the image holds is on stable storage
 * before: from now on nothing else may be needed of the old backing file.
 */
export async function writeBackingName(node: BlockNode, backing: BackingName | null): Promise<void> {
  await wrapped.flush(node);
  await wrapped.changeBackingFile(node, backing);
}
