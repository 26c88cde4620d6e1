/**
 * Checking an image and repairing it: the order of the steps, and what their outcomes add up to.
 *
 * 1. The snapshot table is read.
 * 2. References are counted: the header, L1 and L2 tables (active, then of snapshots), the snapshot table, the
 *    refcount table, the LUKS header, bitmaps, the refcount blocks.
 * 3. The counts are compared with the refcounts on the disk. Where those are of no use the refcount structures are
 *    made anew; else single refcounts are put right.
 * 4. COPIED flags are compared with the refcounts.
 * 5. A repaired snapshot table is written.
 * 6. An image without errors is marked as such: dirty and corrupt bits go.
 *
 * Everything is read from the disk, around the driver's caches: the caller has written them back, keeps everybody else
 * out, and reloads them afterwards. A repair that is interrupted leaves an image that is no worse than before:
 * refcounts are raised before anything relies on them, and pointers are written after what they point to.
 * Texts and counts are those of the original, by observation.
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import {
  emptyCheckResult,
  type ImageCheckRequest,
  type ImageCheckResult,
} from '../../../../block/contract/image.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { Incompat } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { barrier, writeHeader } from '../metadata/metadata-io.ts';
import { checkCopiedFlags } from './copied.ts';
import { countBitmaps, countLuksHeader, countRefcountBlocks, countRefcountTable } from './metadata.ts';
import { rebuildRefcounts } from './rebuild.ts';
import { compareRefcounts, DiskRefcounts } from './refcounts.ts';
import { ReferenceCounts } from './references.ts';
import { checkSnapshotL1, readSnapshots, rewriteSnapshots, type SnapshotTable } from './snapshots.ts';
import { type Check, countRegion, measureFile, readTable } from './state.ts';
import { checkL1 } from './tables.ts';

/**
 * Checks the image. Runs in an exclusive section (exclusive.ts) or while the node is being opened; `reload` makes the
 * driver read all tables again and is called, whatever the outcome, when anything was changed.
 * Throws when the check cannot be done to its end; what was found until then has been reported.
 */
export async function check(
  node: Qcow2Node,
  guard: GraphReadGuard,
  request: ImageCheckRequest,
  reload: () => Promise<void>,
): Promise<ImageCheckResult> {
  const s = node.state;
  const c: Check = {
    node,
    guard,
    s,
    request,
    result: emptyCheckResult(),
    fileBytes: 0,
    clusters: 0,
    references: new ReferenceCounts(),
    refcounts: new DiskRefcounts(s),
    rebuild: false,
    turns: createTurns(),
    repaired: false,
    allCopied: true,
    l2Memory: null,
  };
  try {
    return await run(c);
  } catch (error) {
    throw await toRequestError(node, guard, error);
  } finally {
    if (c.repaired && !s.dead) await reload();
  }
}

async function run(c: Check): Promise<ImageCheckResult> {
  const { request, s } = c;
  await measureFile(c);
  // Guests see whole sectors.
  c.result.totalClusters = Math.ceil((Math.floor(s.header.size / 512) * 512) / s.clusterBytes);
  const table = await readSnapshots(c);
  // What the table says is protected from now on.
  s.extras.snapshots = table.records;
  rebuildMetadata(s);
  await checkReferences(c, table);
  if (!flagsAreRight(c)) await checkCopiedFlags(c);
  if (c.repaired) await barrier(c.node, c.guard);
  if (table.errors > 0) {
    if (request.fixErrors) {
      await rewriteSnapshots(c, table);
      c.result.corruptionsFixed += table.errors;
    } else {
      c.result.corruptions += table.errors;
    }
  }
  const { checkErrors, corruptions } = c.result;
  if ((request.fixLeaks || request.fixErrors) && checkErrors === 0 && corruptions === 0) await markGood(c);
  return c.result;
}

/** Counts everything the image refers to. */
async function countReferences(c: Check, table: SnapshotTable): Promise<void> {
  const { header, l1, clusterBytes } = c.s;
  c.references = new ReferenceCounts();
  c.allCopied = true;
  countRegion(c, 0, clusterBytes);
  await checkL1(c, { offset: header.l1Offset, view: l1, active: true });
  for (const record of table.records) {
    if (!checkSnapshotL1(c, record)) continue;
    const view = await readTable(c, record.l1Offset, record.l1Entries * 8, 'check_refcounts_l1');
    await checkL1(c, { offset: record.l1Offset, view, active: false });
  }
  countRegion(c, header.snapshotsOffset, table.bytes);
  countRefcountTable(c);
  countLuksHeader(c);
  await countBitmaps(c);
  await countRefcountBlocks(c);
}

/**
 * Whether step 4 would find nothing: the refcounts on the disk are what was counted, nothing was counted twice, and every
 * entry says so. That saves the second way through tables that are large in large images.
 */
function flagsAreRight({ result, rebuild, repaired, allCopied, references }: Check): boolean {
  const { checkErrors, corruptions, leaks } = result;
  const isClean = checkErrors === 0 && corruptions === 0 && leaks === 0 && !rebuild && !repaired;
  return isClean && allCopied && references.most <= 1;
}

/** Steps 2 and 3: counting, comparing, repairing what is on the disk. */
async function checkReferences(c: Check, table: SnapshotTable): Promise<void> {
  const { fixLeaks, fixErrors } = c.request;
  await countReferences(c, table);
  const counted = { ...c.result };
  await compareRefcounts(c, { leaks: false, errors: false });
  if (!fixLeaks && !fixErrors) return;
  if (c.rebuild && !fixErrors) {
    c.request.report('ERROR need to rebuild refcount structures');
    throw ioError(E.EIO);
  }
  if (c.repaired) await barrier(c.node, c.guard);
  if (c.rebuild) {
    await rebuild(c, table);
  } else if (c.result.leaks > 0 || c.result.corruptions > 0) {
    c.result = counted;
    await compareRefcounts(c, { leaks: fixLeaks, errors: fixErrors });
  }
  if (c.repaired) await barrier(c.node, c.guard);
}

/** Makes the refcount structures anew, then looks at the image again: the old ones are leaked clusters now. */
async function rebuild(c: Check, table: SnapshotTable): Promise<void> {
  const before = c.result;
  c.request.report('Rebuilding refcount structure');
  await rebuildRefcounts(c);
  await measureFile(c);
  c.result = { ...emptyCheckResult(), totalClusters: before.totalClusters };
  c.rebuild = false;
  await countReferences(c, table);
  // What is found by comparing now was not there before.
  const { corruptions } = c.result;
  await compareRefcounts(c, { leaks: true, errors: false });
  if (c.rebuild) c.request.report('ERROR rebuilt refcount structure is still broken');
  c.result.corruptionsFixed = before.corruptionsFixed + before.corruptions - corruptions;
  c.result.leaksFixed = before.leaksFixed + before.leaks - c.result.leaks;
}

/** An image that was repaired completely is neither dirty nor corrupt any more. */
async function markGood(c: Check): Promise<void> {
  const { header } = c.s;
  const marks = Incompat.dirty | Incompat.corrupt;
  if ((header.incompatible & marks) === 0) return;
  // What was repaired first, then the claim that it was.
  await barrier(c.node, c.guard);
  header.incompatible &= ~marks;
  await writeHeader(c.node, c.guard);
  await barrier(c.node, c.guard);
}
