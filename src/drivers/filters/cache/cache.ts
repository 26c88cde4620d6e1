/**
 * cache: a filter that keeps what has been read, for whoever reads it next.
 *
 * Options: `file`; `size`, the most that is kept, in bytes; `block-size`; `cache-file`, a new file to keep it in, in
 * place of memory. Reads fetch whole blocks; blocks that were read longest ago go first. Writes go below at once, and
 * what was kept of their range is forgotten. Nobody else may write to the node below. When the graph may change (a
 * drained section begins), everything is forgotten.
 *
 * A block is found by its number in `slots`. It is entered when its data are in the store, and taken out before
 * anything changes it; a slot that somebody reads is not given to another block (`readers`).
 */

import {
  allocateIoMemory,
  copyToVector,
  type IoMemory,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Req, Role } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { filtered, passChanges, passOn, soleWriter } from '../pass-on.ts';
import { type BlockStore, fileStore, memoryStore } from './store.ts';

interface Slot {
  readonly index: number;
  readers: number;
}

interface CacheState {
  readonly blockBytes: number;
  readonly slotCount: number;
  readonly store: BlockStore;
  /** By block number, the one used longest ago first. */
  readonly slots: Map<number, Slot>;
  readonly free: number[];
  used: number;
  /** Slots being written for a block; the value turns false when the block changes meanwhile. */
  readonly entering: Map<number, { valid: boolean }>;
  /** Changes under way; and those that are over, counted: what was fetched before one is not entered after it. */
  changing: number;
  generation: number;
}

type CacheNode = BlockNode<CacheState>;

const DEFAULT_SIZE_BYTES = 64 * 1024 * 1024;
const DEFAULT_BLOCK_BYTES = 64 * 1024;
const MIN_BLOCK_BYTES = 4096;
const MAX_BLOCK_BYTES = 4 * 1024 * 1024;
/** More blocks are no cache but a second disk with a table of it in memory. */
const MAX_SLOTS = 4 * 1024 * 1024;

// ---- open, close ---------------------------------------------------------------------------------------------

async function open(_node: CacheNode, context: OpenContext): Promise<CacheState> {
  const options = context.options as { size?: number; 'block-size'?: number; 'cache-file'?: string };
  const blockBytes = options['block-size'] ?? DEFAULT_BLOCK_BYTES;
  const isPower = blockBytes > 0 && Number.isInteger(Math.log2(blockBytes));
  if (!isPower || blockBytes < MIN_BLOCK_BYTES || blockBytes > MAX_BLOCK_BYTES)
    throw invalid(`'block-size' expects a power of two from ${MIN_BLOCK_BYTES} to ${MAX_BLOCK_BYTES}`);
  const slotCount = Math.floor((options.size ?? DEFAULT_SIZE_BYTES) / blockBytes);
  if (slotCount < 1 || slotCount > MAX_SLOTS) throw invalid(`'size' expects 1 to ${MAX_SLOTS} blocks`);
  await context.openChild('file', Role.filtered | Role.primary, true);
  const file = options['cache-file'];
  return {
    blockBytes,
    slotCount,
    store: file === undefined ? memoryStore(blockBytes) : fileStore(context.engine, file, blockBytes),
    slots: new Map(),
    free: [],
    used: 0,
    entering: new Map(),
    changing: 0,
    generation: 0,
  };
}

function invalid(text: string): BlockError {
  return new BlockError(`Parameter ${text}`, { errno: E.EINVAL });
}

// ---- blocks --------------------------------------------------------------------------------------------------

/** A slot for a block, taken from another one when all are used; null: all are being read. */
function takeSlot(state: CacheState): number | null {
  const free = state.free.pop();
  if (free !== undefined) return free;
  if (state.used < state.slotCount) return state.used++;
  for (const [block, slot] of state.slots) {
    if (slot.readers > 0) continue;
    state.slots.delete(block);
    return slot.index;
  }
  return null;
}

function forget(state: CacheState, block: number): void {
  const entering = state.entering.get(block);
  if (entering !== undefined) entering.valid = false;
  const slot = state.slots.get(block);
  if (slot === undefined) return;
  state.slots.delete(block);
  // A reader gives the slot back when it is done.
  if (slot.readers === 0) state.free.push(slot.index);
  else slot.readers += GIVE_BACK;
}

/** Added to `readers` of a slot whose block is forgotten. */
const GIVE_BACK = 2 ** 31;

/** Reads from a slot; false: its data cannot be had. */
async function readSlot(state: CacheState, slot: Slot, start: number, vec: IoVector): Promise<boolean> {
  slot.readers++;
  try {
    return await state.store.read(slot.index, start, vec);
  } finally {
    slot.readers--;
    if (slot.readers === GIVE_BACK) state.free.push(slot.index);
  }
}

/** Keeps a block that was fetched, unless it has changed since. */
async function enter(
  state: CacheState,
  block: number,
  generation: number,
  memory: IoMemory,
  start: number,
): Promise<void> {
  // A change under way, or one since the data were asked for, may be in them or not.
  if (state.changing > 0 || state.generation !== generation) return;
  if (state.slots.has(block) || state.entering.has(block)) return;
  const index = takeSlot(state);
  if (index === null) return;
  const entering = { valid: true };
  state.entering.set(block, entering);
  let kept = false;
  try {
    kept = await state.store.write(index, memory, start);
  } finally {
    state.entering.delete(block);
    if (kept && entering.valid) state.slots.set(block, { index, readers: 0 });
    else state.free.push(index);
  }
}

// ---- I/O -----------------------------------------------------------------------------------------------------

async function preadv(
  node: CacheNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (flags !== 0 || bytes === 0) {
    await co.preadv(filtered(node), guard, offset, bytes, vec, flags);
    return;
  }
  const { state } = node;
  const { blockBytes, slots } = state;
  const end = offset + bytes;
  const running: Promise<void>[] = [];
  for (let at = offset; at < end; ) {
    const block = Math.floor(at / blockBytes);
    const slot = slots.get(block);
    if (slot !== undefined) {
      const to = Math.min(end, (block + 1) * blockBytes);
      running.push(hit(node, guard, block, slot, at, sliceVector(vec, at - offset, to - at)));
      at = to;
      continue;
    }
    let last = block;
    while ((last + 1) * blockBytes < end && !slots.has(last + 1)) last++;
    const to = Math.min(end, (last + 1) * blockBytes);
    running.push(miss(node, guard, block, last, at, sliceVector(vec, at - offset, to - at)));
    at = to;
  }
  // The memory is the caller's again when all are over, not before.
  for (const result of await Promise.allSettled(running))
    if (result.status === 'rejected') throw result.reason;
}

async function hit(
  node: CacheNode,
  guard: GraphReadGuard,
  block: number,
  slot: Slot,
  at: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  // The end of the order is what was used last.
  state.slots.delete(block);
  state.slots.set(block, slot);
  if (await readSlot(state, slot, at - block * state.blockBytes, vec)) return;
  if (state.slots.get(block) === slot) forget(state, block);
  await co.preadv(filtered(node), guard, at, vec.bytes, vec, 0);
}

/** Fetches blocks `first` to `last` as a whole and keeps them. */
async function miss(
  node: CacheNode,
  guard: GraphReadGuard,
  first: number,
  last: number,
  at: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  const { blockBytes, generation } = state;
  const from = first * blockBytes;
  const memory = allocateIoMemory((last + 1 - first) * blockBytes);
  const inside = Math.min(memory.buf.length, node.totalBytes - from);
  // Less than was asked for is inside: the end of the node is the I/O path's business.
  if (inside < at + vec.bytes - from) {
    await co.preadv(filtered(node), guard, at, vec.bytes, vec, 0);
    return;
  }
  memory.buf.fill(0, inside);
  await co.preadv(filtered(node), guard, from, inside, vectorOf(memory, 0, inside), 0);
  copyToVector(vec, memory.buf.subarray(at - from, at - from + vec.bytes));
  for (let block = first; block <= last; block++)
    await enter(state, block, generation, memory, (block - first) * blockBytes);
}

/** A change of the range: what is kept of it goes, and nothing fetched before or during it is kept. */
async function changing(
  { state }: CacheNode,
  offset: number,
  bytes: number,
  change: () => Promise<void>,
): Promise<void> {
  state.changing++;
  forgetRange(state, offset, bytes);
  try {
    await change();
  } finally {
    state.changing--;
    state.generation++;
    forgetRange(state, offset, bytes);
  }
}

function forgetRange(state: CacheState, offset: number, bytes: number): void {
  const first = Math.floor(offset / state.blockBytes);
  const last = Math.floor((offset + bytes - 1) / state.blockBytes);
  if (last - first < state.slots.size + state.entering.size) {
    for (let block = first; block <= last; block++) forget(state, block);
    return;
  }
  for (const block of [...state.slots.keys(), ...state.entering.keys()])
    if (block >= first && block <= last) forget(state, block);
}

export const cache: BlockDriver<CacheState> = {
  name: 'cache',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  async close({ state }) {
    state.store.close();
  },
  childPermissions: soleWriter,
  drainBegin({ state }) {
    state.generation++;
    forgetRange(state, 0, Number.MAX_SAFE_INTEGER);
  },
  async reopenPrepare() {},
  ...passOn,
  preadv,
  ...passChanges(changing),
};
