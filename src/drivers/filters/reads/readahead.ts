/**
 * readahead: a filter that fetches what a reader from front to back is going to ask for.
 *
 * Options: `file`; `initial`, the first window in bytes; `window`, the largest one, and the most memory that is used.
 * How windows grow is ../prefetch/windows.ts. Nobody else may write to the node below, or what has been fetched would be
 * old. When the graph may change (a drained section begins), all that has been fetched is forgotten.
 */

import type { IoVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Req, Role } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createReadWindows, type ReadWindows } from '../../prefetch/windows.ts';
import { filtered, passChanges, passOn, soleWriter } from '../pass-on.ts';

interface ReadaheadState {
  readonly windows: ReadWindows;
  /** Fetching that goes on when the request that began it is done. */
  readonly ahead: Set<Promise<void>>;
}

type ReadaheadNode = BlockNode<ReadaheadState>;

const DEFAULT_INITIAL_BYTES = 256 * 1024;
const DEFAULT_WINDOW_BYTES = 16 * 1024 * 1024;
const MAX_WINDOW_BYTES = 1024 ** 3;

async function open(node: ReadaheadNode, context: OpenContext): Promise<ReadaheadState> {
  const options = context.options as { readonly initial?: number; readonly window?: number };
  const maxBytes = options.window ?? DEFAULT_WINDOW_BYTES;
  const firstBytes = options.initial ?? Math.min(DEFAULT_INITIAL_BYTES, maxBytes);
  if (maxBytes > MAX_WINDOW_BYTES || firstBytes < 0 || firstBytes > maxBytes)
    throw new BlockError(
      `Parameter 'window' expects at least the first window, and ${MAX_WINDOW_BYTES} at most`,
      {
        errno: E.EINVAL,
      },
    );
  await context.openChild('file', Role.filtered | Role.primary, true);
  const none = (): Promise<void> => Promise.reject(new BlockError('no reader', { errno: E.EIO }));
  return {
    windows: createReadWindows({ firstBytes, maxBytes }, none, () => node.totalBytes),
    ahead: new Set(),
  };
}

function preadv(
  node: ReadaheadNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const below = filtered(node);
  if (flags !== 0 || bytes === 0) return co.preadv(below, guard, offset, bytes, vec, flags);
  const { windows, ahead } = node.state;
  return windows.read(
    offset,
    vec,
    (at, part) => co.preadv(below, guard, at, part.bytes, part, 0),
    (at, part) => {
      const fetching = node.layer.graphLock
        .detached(guard, (own) => co.preadv(below, own, at, part.bytes, part, 0))
        .finally(() => ahead.delete(fetching));
      ahead.add(fetching);
      return fetching;
    },
  );
}

/** A change of the range: what was fetched before and during it is not to be seen afterwards. */
async function changing(
  { state: { windows } }: ReadaheadNode,
  offset: number,
  bytes: number,
  change: () => Promise<void>,
): Promise<void> {
  windows.invalidate(offset, bytes);
  try {
    await change();
  } finally {
    windows.invalidate(offset, bytes);
  }
}

export const readahead: BlockDriver<ReadaheadState> = {
  name: 'readahead',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  async close({ state }) {
    await Promise.allSettled(state.ahead);
  },
  childPermissions: soleWriter,
  drainBegin({ state }) {
    state.windows.invalidate(0, Number.MAX_SAFE_INTEGER);
  },
  async reopenPrepare() {},
  ...passOn,
  preadv,
  ...passChanges(changing),
};
