/** The callbacks of a driver whose image maps blocks: each is the shared function with the format's map. */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import { Req } from '../../../block/contract/request.ts';
import type { BlockMap, MappedState } from './mapped-image.ts';
import { mappedStatus, readMapped, tryReadMapped } from './mapped-read.ts';
import { discardMapped, tryWriteMapped, writeMapped, zeroMapped } from './mapped-write.ts';
import { closeMapped, flushMapped } from './write-back.ts';

type MappedCallbacks<S> = Required<
  Pick<
    BlockDriver<S>,
    | 'kind'
    | 'fixedLength'
    | 'supportedWriteFlags'
    | 'supportedZeroFlags'
    | 'tryPreadv'
    | 'preadv'
    | 'blockStatus'
    | 'reopenPrepare'
    | 'close'
    | 'flush'
  >
> &
  Pick<BlockDriver<S>, 'tryPwritev' | 'pwritev' | 'pwriteZeroes' | 'pdiscard'>;

/** Callbacks for reading only. */
export function readingCallbacks<S extends MappedState>(map: BlockMap<S>): MappedCallbacks<S> {
  return {
    kind: 'format',
    fixedLength: true,
    supportedWriteFlags: 0,
    supportedZeroFlags: Req.mayUnmap | Req.noFallback,
    tryPreadv: (node, guard, offset, bytes, vec, short) =>
      tryReadMapped(map, node, guard, offset, bytes, vec, short),
    preadv: (node, guard, offset, bytes, vec) => readMapped(map, node, guard, offset, bytes, vec),
    blockStatus: (node, guard, _wantZero, offset, bytes) => mappedStatus(map, node, guard, offset, bytes),
    // Whatever is only in memory goes to the disk first, as the file below may become read-only.
    reopenPrepare: async (node) => {
      if (!node.readOnly) await node.layer.graphLock.withRead((guard) => flushMapped(map, node, guard));
      return null;
    },
    close: (node) => closeMapped(map, node),
    flush: (node, guard) => flushMapped(map, node, guard),
  };
}

/** Callbacks for reading and writing. */
export function mappedCallbacks<S extends MappedState>(map: BlockMap<S>): MappedCallbacks<S> {
  return {
    ...readingCallbacks(map),
    tryPwritev: (node, guard, offset, bytes, vec, short) =>
      tryWriteMapped(map, node, guard, offset, bytes, vec, short),
    pwritev: (node, guard, offset, bytes, vec) => writeMapped(map, node, guard, offset, bytes, vec),
    pwriteZeroes: (node, guard, offset, bytes, flags) => zeroMapped(map, node, guard, offset, bytes, flags),
    pdiscard: (node, guard, offset, bytes) => discardMapped(map, node, guard, offset, bytes),
  };
}
