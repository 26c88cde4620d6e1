/**
 * The need-check flag: set before clusters are allocated, cleared when all is on the disk and nothing has been
 * allocated for some seconds. Whoever finds it in an image looks for leaked clusters and, in images that others wrote,
 * for worse.
 */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { co } from '../../../block/io/callbacks.ts';
import { writeBytes } from '../shared/table-io.ts';
import { flushMapped } from '../shared/write-back.ts';
import { encodeHeader, Feature } from './header.ts';
import { map, type QedNode } from './map.ts';

/** As the original's. */
const IDLE_MS = 5000;

export function needsCheck(node: QedNode): boolean {
  return (node.state.header.features & Feature.needCheck) !== 0;
}

export async function writeHeader({ state }: QedNode, guard: GraphReadGuard): Promise<void> {
  await writeBytes(state.file, guard, 0, encodeHeader(state.header));
}

/** Sets the flag, on stable storage. */
export async function setNeedCheck(node: QedNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  await state.writeBack.lock.with('need-check flag', async () => {
    if (needsCheck(node)) return;
    state.header.features |= Feature.needCheck;
    try {
      await writeHeader(node, guard);
      await co.flush(state.file.node, guard);
    } catch (error) {
      state.header.features &= ~Feature.needCheck;
      throw error;
    }
  });
  state.lastAllocationMs = performance.now();
  if (state.checkTimer === null) wait(node, IDLE_MS);
}

function wait(node: QedNode, ms: number): void {
  const { state } = node;
  if (state.writeBack.closing) return;
  state.checkTimer = setTimeout(() => void whenIdle(node), ms);
  state.checkTimer.unref();
}

export function stopTimer({ state }: QedNode): void {
  if (state.checkTimer !== null) clearTimeout(state.checkTimer);
  state.checkTimer = null;
}

async function whenIdle(node: QedNode): Promise<void> {
  const { state } = node;
  state.checkTimer = null;
  const left = state.lastAllocationMs + IDLE_MS - performance.now();
  if (left > 0 || node.quiesced > 0) {
    wait(node, Math.max(left, IDLE_MS / 10));
    return;
  }
  // Counted like a request, so that draining the node waits for it.
  node.inFlight++;
  try {
    await node.layer.graphLock.withRead((guard) => clearNeedCheck(node, guard));
  } catch {
    // The flag stays: that is what it is for.
    wait(node, IDLE_MS);
  } finally {
    node.inFlight--;
    if (node.inFlight === 0) node.idle.wakeAll();
  }
}

/** Writes all metadata and takes the flag away, unless clusters have been allocated meanwhile. */
export async function clearNeedCheck(node: QedNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  if (!needsCheck(node) || node.readOnly) return;
  await flushMapped(map, node, guard);
  await co.flush(state.file.node, guard);
  await state.writeBack.lock.with('need-check flag', async () => {
    const isBusy = state.allocations.length > 0 || state.table.tables.cache.dirtyCount > 0;
    if (isBusy || state.table.changed.size + state.table.taken.size > 0) {
      if (state.checkTimer === null) wait(node, IDLE_MS);
      return;
    }
    state.header.features &= ~Feature.needCheck;
    try {
      await writeHeader(node, guard);
    } catch (error) {
      state.header.features |= Feature.needCheck;
      throw error;
    }
  });
}
