/** Names of parent images as other systems write them, and which of several leads to a file here. */

import { existsSync } from 'node:fs';
import type { BlockNode } from '../../../block/graph/node.ts';
import { placeOf, relativeName } from '../../../block/open/image-name.ts';

/** A path of Windows as one of ours: slashes, no drive, nothing that only says "here". */
export function portablePath(path: string): string {
  return path
    .replace(/^[A-Za-z]:/, '')
    .replaceAll('\\', '/')
    .replace(/^(?:\.\/)+/, '');
}

/** Each name, and the same without folders: images that were brought here are mostly side by side. */
export function withBaseNames(names: readonly string[]): readonly string[] {
  return names.flatMap((name) => [name, name.slice(name.lastIndexOf('/') + 1)]).filter((name) => name !== '');
}

/** The first of the names that leads to a file, as seen from the image; the first of all when none does. */
export function chooseParent(node: BlockNode, names: readonly string[]): string | null {
  const place = placeOf(node);
  if (place === null) return names[0] ?? null;
  return names.find((name) => existsSync(relativeName(place, name))) ?? names[0] ?? null;
}
