/**
 * copy-on-read: a filter that writes what is read from backing images into the image below it.
 *
 * Options: `file`; `bottom`, a node of the backing chain: what lies below it is not copied. The copying itself is
 * the I/O path's (io/copy-on-read.ts); here it is decided what is to be copied.
 * Source of the facts: QMP reference, BlockdevOptionsCor.
 */

import { sliceVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import { Perm, Req, Role, Status } from '../../block/contract/request.ts';
import { chainChild, skipFilters } from '../../block/graph/chain.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { backingOf, blockStatusAbove } from '../../block/io/status-chain.ts';
import { BlockError } from '../../errors/error.ts';
import { filtered, passOn } from './pass-on.ts';

interface CopyOnReadState {
  /** The lowest node that data is copied from, held while this one is open; null: no limit. */
  readonly bottom: BlockNode | null;
}

type CopyOnReadNode = BlockNode<CopyOnReadState>;

async function open(node: CopyOnReadNode, context: OpenContext): Promise<CopyOnReadState> {
  const edge = await context.openChild('file', Role.filtered | Role.primary, true);
  const { bottom: name } = context.options;
  if (name === undefined) return { bottom: null };
  const bottom = node.layer.findNode(String(name));
  if (bottom === null) throw new BlockError(`Bottom node '${String(name)}' not found`);
  if (bottom.driver.kind === 'filter') throw new BlockError(`Bottom node '${String(name)}' is a filter`);
  // The original takes it and never answers again.
  if (!isInChain(edge!.node, bottom))
    throw new BlockError(`Bottom node '${String(name)}' is not in the backing chain of '${edge!.node.name}'`);
  node.layer.hold(bottom);
  return { bottom };
}

function isInChain(top: BlockNode, node: BlockNode): boolean {
  for (let at: BlockNode | undefined = top; at !== undefined; at = chainChild(at)?.node) {
    if (at === node) return true;
  }
  return false;
}

/** Reads piece by piece: what is below the bottom node is only read. */
async function readAbove(
  node: CopyOnReadNode,
  bottom: BlockNode,
  guard: GraphReadGuard,
  request: { readonly offset: number; readonly bytes: number; readonly flags: number },
  read: (offset: number, bytes: number, flags: number) => Promise<void>,
): Promise<void> {
  const image = skipFilters(node);
  // What the bottom node itself leaves to its backing image is below it.
  const base = backingOf(bottom);
  const end = request.offset + request.bytes;
  for (let at = request.offset; at < end; ) {
    const own = await co.blockStatus(image, guard, false, at, end - at);
    let length = own.bytes || end - at;
    let flags = request.flags;
    if (own.bytes > 0 && (own.flags & Status.allocated) === 0) {
      const status = await blockStatusAbove(image, guard, base, false, at, length);
      length = status.bytes || length;
      if ((status.flags & Status.allocated) !== 0) flags |= Req.copyOnRead;
    }
    const isWanted = (flags & Req.prefetch) === 0 || (flags & Req.copyOnRead) !== 0;
    if (isWanted) await read(at, length, flags);
    at += length;
  }
}

export const copyOnRead: BlockDriver<CopyOnReadState> = {
  name: 'copy-on-read',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  async close({ layer, state }) {
    if (state.bottom !== null) await layer.release(state.bottom);
  },
  childPermissions: (_node, _roles, { perm, shared }) => ({
    perm: perm | Perm.writeUnchanged,
    shared: shared | Perm.writeUnchanged,
  }),
  ...passOn,
  tryPwritev: ({ children }, guard, offset, bytes, vec, short) =>
    sync.tryPwritev(children[0]!.node, guard, offset, bytes, vec, short),
  preadv(node, guard, offset, bytes, vec, flags) {
    const { bottom } = node.state;
    if (bottom === null) return co.preadv(filtered(node), guard, offset, bytes, vec, flags | Req.copyOnRead);
    return readAbove(node, bottom, guard, { offset, bytes, flags }, (at, length, pieceFlags) =>
      co.preadv(filtered(node), guard, at, length, sliceVector(vec, at - offset, length), pieceFlags),
    );
  },
  pwritevCompressed: (node, guard, offset, bytes, vec) =>
    co.pwritevCompressed(filtered(node), guard, offset, bytes, vec),
};
