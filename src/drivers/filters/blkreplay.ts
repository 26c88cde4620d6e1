/**
 * blkreplay: a filter for machines whose execution is recorded and replayed. Here is no machine: every request is passed
 * on when it comes.
 *
 * The original has it in its system emulator only; its storage daemon does not know the driver.
 * Source of the facts: QMP reference, BlockdevOptionsBlkreplay.
 */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { Req, Role, Status } from '../../block/contract/request.ts';
import { co, sync } from '../../block/io/callbacks.ts';

const FLAGS = Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged;

export const blkreplay: BlockDriver<null> = {
  name: 'blkreplay',
  kind: 'filter',
  supportedWriteFlags: FLAGS,
  supportedZeroFlags: FLAGS,
  async open(_node, context) {
    await context.openChild('image', Role.filtered | Role.primary, true);
    return null;
  },
  exactFilename: () => null,
  tryPreadv: ({ children }, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(children[0]!.node, guard, offset, bytes, vec, short),
  tryPwritev: ({ children }, guard, offset, bytes, vec, short) =>
    sync.tryPwritev(children[0]!.node, guard, offset, bytes, vec, short),
  preadv: ({ children }, guard, offset, bytes, vec, flags) =>
    co.preadv(children[0]!.node, guard, offset, bytes, vec, flags),
  pwritev: ({ children }, guard, offset, bytes, vec, flags) =>
    co.pwritev(children[0]!.node, guard, offset, bytes, vec, flags),
  pwriteZeroes: ({ children }, guard, offset, bytes, flags) =>
    co.pwriteZeroes(children[0]!.node, guard, offset, bytes, flags),
  pdiscard: ({ children }, guard, offset, bytes) => co.pdiscard(children[0]!.node, guard, offset, bytes),
  async blockStatus({ children }, _guard, _wantZero, offset, bytes) {
    return {
      bytes,
      flags: Status.offsetValid | Status.recurse,
      map: offset,
      file: children[0]!.node,
    };
  },
  truncate: ({ children }, guard, length, exact, prealloc, zeroFill) =>
    co.truncate(children[0]!.node, guard, length, exact, prealloc, zeroFill),
};
