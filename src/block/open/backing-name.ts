/** change-backing-file: what an image says of its backing file, changed without changing the graph. */

import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';
import { chainChild, cowChild } from '../graph/chain.ts';
import { drained } from '../graph/drain.ts';
import type { BlockNode } from '../graph/node.ts';
import { wrapped } from '../io/callbacks.ts';
import { changeOptions } from './reopen.ts';

/**
 * Writes `name` into `image`, which is `top` or below it in its chain; an empty name: the image has no backing file.
 * An image that is open read-only is opened for writing meanwhile.
 */
export async function setBackingName(top: BlockNode, image: BlockNode, name: string): Promise<void> {
  if (cowChild(image) === null)
    throw new BlockError('not allowing backing file change on an image without a backing file');
  if (!isInChain(top, image)) throw new BlockError(`'${top.name}' and image file are not in the same chain`);
  const { readOnly } = image;
  if (readOnly) await changeOptions(image, { 'read-only': false });
  try {
    // The format is the image's own, not the backing file's: so says the original.
    const backing = name === '' ? null : { filename: name, format: image.driver.name };
    await drained(image, () => wrapped.changeBackingFile(image, backing));
    // From now on what is below is not simply what the image names.
    const { settings } = image;
    await image.layer.graphLock.withWrite(() => {
      image.settings = { ...settings, options: { backing: null, ...settings.options } };
    });
  } catch (error) {
    throw errnoError(`Could not change backing file to '${name}'`, errnoOf(error));
  } finally {
    if (readOnly) await changeOptions(image, { 'read-only': true });
  }
}

function isInChain(top: BlockNode, image: BlockNode): boolean {
  for (let at: BlockNode | null = top; at !== null; at = chainChild(at)?.node ?? null)
    if (at === image) return true;
  return false;
}
