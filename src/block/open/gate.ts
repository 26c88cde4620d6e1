/** Whether an image may open files that only it names: see contract/gate.ts. */

import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import type { ImplicitOpenGate } from '../contract/gate.ts';
import type { BlockNode } from '../graph/node.ts';

const PASSED = Object.freeze({}) as unknown as ImplicitOpenGate;

/** The proof for one file; throws EACCES for an untrusted image. `what`: "backing file", "data file". */
export function passGate(node: BlockNode, what: string, filename: string): ImplicitOpenGate {
  if (!node.settings.untrusted) return PASSED;
  throw new BlockError(`The untrusted image names the ${what} '${filename}', which it may not open`, {
    errno: E.EACCES,
    hint: `Give the ${what} as an option if it is to be opened, or none if there is to be none.`,
  });
}
