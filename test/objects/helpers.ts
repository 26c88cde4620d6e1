/** What the tests of objects share. */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { BlockError } from '../../src/errors/error.ts';
import { ObjectTree } from '../../src/objects/tree.ts';

/** A tree with these objects. */
export async function treeWith(...objects: ObjectOptions[]): Promise<ObjectTree> {
  const tree = new ObjectTree();
  for (const options of objects) await tree.add(options);
  return tree;
}

/** The message of the BlockError that `action` throws. */
export async function messageOf(action: () => unknown): Promise<string> {
  try {
    await action();
  } catch (error) {
    if (error instanceof BlockError) return error.message;
    throw error;
  }
  throw new Error('nothing was thrown');
}
