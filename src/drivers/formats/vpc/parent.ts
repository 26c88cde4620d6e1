/**
 * The parent of a differencing VHD image: by its locators (paths of Windows and of the Mac) or its name, looked for
 * beside the image. It must be the very image that the UUID names.
 */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { portablePath, withBaseNames } from '../shared/parent-paths.ts';
import { readBytes } from '../shared/table-io.ts';
import { type DynamicHeader, utf16 } from './footer.ts';

const MAX_LOCATOR_BYTES = 64 * 1024;

/** Names under which the parent may be found, the best first; relative ones are relative to the image. */
export async function parentNames(
  file: BlockChild,
  guard: GraphReadGuard,
  header: DynamicHeader,
): Promise<readonly string[]> {
  const texts = new Map<string, string>();
  for (const { platform, offset, bytes } of header.locators) {
    if (bytes === 0 || bytes > MAX_LOCATOR_BYTES || offset + bytes > file.node.totalBytes) continue;
    const data = await readBytes(file, guard, offset, bytes);
    texts.set(
      platform,
      platform === 'MacX' ? data.toString('utf8').replace(/\0.*$/s, '') : utf16(data, 'le'),
    );
  }
  const relative = texts.get('W2ru') ?? texts.get('Wi2r');
  const absolute = texts.get('W2ku') ?? texts.get('Wi2k');
  const url = texts.get('MacX')?.replace(/^file:\/\/(?:localhost)?/, '');
  const named = [relative, absolute, url, header.parentName]
    .filter((name) => name !== undefined && name !== '')
    .map((name) => portablePath(name!));
  return withBaseNames(named);
}
