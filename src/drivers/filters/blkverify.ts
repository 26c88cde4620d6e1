/**
 * blkverify: writes to two images and compares what reads of them give, for tests.
 *
 * `raw` is the one that is believed, `test` the one under test. The first difference, in content or in outcome, ends the
 * process with a message. Discards are not passed on, zeroes are written as data. Names: `blkverify:RAW:TEST`.
 * Source of the facts: QEMU documentation, "blkverify"; QMP reference, BlockdevOptionsBlkverify; its behaviour.
 */

import { allocateIoMemory, type IoVector, vectorOf } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import { Perm, type PermissionPair, Req, Role } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co } from '../../block/io/callbacks.ts';
import { exactFilename } from '../../block/open/filename.ts';
import { errnoOf } from '../../errors/error.ts';
import { firstDifference } from './compare.ts';
import { blkverifyNames } from './test-names.ts';

interface BlkverifyState {
  readonly raw: () => BlockNode;
  readonly test: () => BlockNode;
}

async function open(_node: BlockNode<BlkverifyState>, context: OpenContext): Promise<BlkverifyState> {
  const raw = await openNamed(context, 'raw', 'x-raw', Role.filtered | Role.primary);
  const test = await openNamed(context, 'test', 'x-image', Role.data);
  return { raw: () => raw.node, test: () => test.node };
}

async function openNamed(
  context: OpenContext,
  child: string,
  nameOption: string,
  roles: number,
): Promise<{ readonly node: BlockNode }> {
  const name = context.options[nameOption];
  // The image under test may have any format; the other one is taken as it is.
  if (typeof name === 'string') return context.openNamedChild(child, roles, name, child === 'test');
  return (await context.openChild(child, roles, true))!;
}

/** Runs the same on both sides; 0 or the positive errno of each. */
async function both(
  { state }: BlockNode<BlkverifyState>,
  run: (target: BlockNode, side: 'test' | 'raw') => Promise<void>,
): Promise<{ readonly test: number; readonly raw: number }> {
  const outcome = (request: Promise<void>): Promise<number> => request.then(() => 0, errnoOf);
  const [test, raw] = await Promise.all([
    outcome(run(state.test(), 'test')),
    outcome(run(state.raw(), 'raw')),
  ]);
  return { test, raw };
}

/** Ends the process: whoever runs this wants to see the difference where it is. */
function differ(node: BlockNode, what: string, offset: number, bytes: number, how: string): never {
  return node.layer.fatal(`blkverify: ${what} offset=${offset} bytes=${bytes} ${how}\n`);
}

async function compared(
  node: BlockNode<BlkverifyState>,
  what: string,
  offset: number,
  bytes: number,
  run: (target: BlockNode, side: 'test' | 'raw') => Promise<void>,
): Promise<void> {
  let failure: unknown = null;
  const { test, raw } = await both(node, (target, side) =>
    run(target, side).catch((error: unknown) => {
      failure = error;
      throw error;
    }),
  );
  if (test !== raw) differ(node, what, offset, bytes, `return value mismatch ${-test} != ${-raw}`);
  if (failure !== null) throw failure;
}

export const blkverify: BlockDriver<BlkverifyState> = {
  name: 'blkverify',
  kind: 'filter',
  isProtocolFilter: true,
  noPlace: 'Cannot generate a base directory for blkverify nodes',
  supportedWriteFlags: Req.writeUnchanged,
  supportedZeroFlags: 0,
  ...blkverifyNames,
  open,
  exactFilename({ children }) {
    const [raw, test] = children.map((edge) => exactFilename(edge.node));
    return typeof raw === 'string' && typeof test === 'string' ? `blkverify:${raw}:${test}` : null;
  },
  childPermissions(_node, roles, wanted) {
    return (roles & Role.filtered) !== 0 ? wanted : dataPermissions(wanted);
  },
  async preadv(node, guard, offset, bytes, vec, flags) {
    const copy: IoVector = vectorOf(allocateIoMemory(bytes));
    await compared(node, 'read', offset, bytes, (target, side) =>
      co.preadv(target, guard, offset, bytes, side === 'test' ? vec : copy, flags),
    );
    const at = firstDifference(vec, copy);
    if (at >= 0) differ(node, 'read', offset, bytes, `contents mismatch at offset ${offset + at}`);
  },
  pwritev(node, guard, offset, bytes, vec, flags) {
    return compared(node, 'write', offset, bytes, (target) =>
      co.pwritev(target, guard, offset, bytes, vec, flags),
    );
  },
  flushesChildren: true,
  flush: ({ state }, guard) => co.flush(state.test(), guard),
  getLength: async ({ children }) => children[1]!.node.totalBytes,
  getAllocatedFileSize: async () => -1,
  truncate: ({ state }, guard, length, exact, prealloc, zeroFill) =>
    co.truncate(state.raw(), guard, length, exact, prealloc, zeroFill),
};

/** Nobody else may change the length of a child with plain data, and who writes may make it longer. */
function dataPermissions({ perm, shared }: PermissionPair): PermissionPair {
  let taken = perm;
  if ((taken & Perm.writeUnchanged) !== 0) taken |= Perm.write;
  if ((taken & Perm.write) !== 0) taken |= Perm.resize;
  return { perm: taken, shared: shared & ~Perm.resize };
}
