/** What queries tell about a qcow2 image beyond what every image has. */

import type { ImageInfoSpecific, ImageInfoSpecificQCow2 } from '../../../../../schema/generated/types.ts';
import { bitmapInfos } from '../bitmaps/bitmaps.ts';
import { Autoclear, Compat, Crypt, Incompat } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';

/** The `format-specific` part, members in the original's order. */
export function specificInfo(node: Qcow2Node): ImageInfoSpecific {
  const { header } = node.state;
  const compressionType = header.compressionType === 1 ? 'zstd' : 'zlib';
  const refcountBits = 2 ** header.refcountOrder;
  if (header.version < 3) {
    return {
      type: 'qcow2',
      data: { compat: '0.10', 'refcount-bits': refcountBits, 'compression-type': compressionType },
    };
  }
  const external = (header.incompatible & Incompat.dataFile) !== 0;
  const { luks } = node.state.extras;
  const bitmaps = bitmapInfos(node);
  const data: ImageInfoSpecificQCow2 = {
    compat: '1.1',
    ...(external && header.dataFile !== null ? { 'data-file': header.dataFile } : {}),
    ...(external ? { 'data-file-raw': (header.autoclear & Autoclear.dataFileRaw) !== 0 } : {}),
    'extended-l2': (header.incompatible & Incompat.extendedL2) !== 0,
    'lazy-refcounts': (header.compatible & Compat.lazyRefcounts) !== 0,
    corrupt: (header.incompatible & Incompat.corrupt) !== 0,
    'refcount-bits': refcountBits,
    ...(luks !== null ? { encrypt: { format: 'luks' as const, ...luks } } : {}),
    ...(header.cryptMethod === Crypt.aes ? { encrypt: { format: 'aes' as const } } : {}),
    'compression-type': compressionType,
    ...(bitmaps !== undefined ? { bitmaps } : {}),
  };
  return { type: 'qcow2', data };
}
