/**
 * The part of an image check that looks at COPIED flags of the active tables: an entry has it exactly when what it
 * points to has a refcount of one. It runs when the refcounts on the disk are as good as they get.
 */

import { entryOffset, HI_COMPRESSED, HI_COPIED } from '../layout/layout.ts';
import { type Check, corruption, entryHex, readL2, usedEntry, wordsOf, writeTable } from './state.ts';

/** Checks, and repairs when allowed to, the flags of all active tables. */
export async function checkCopiedFlags(c: Check): Promise<void> {
  const { s, request, result } = c;
  // A wrong flag next to leaks alone is harmless to mend; next to real errors nobody knows what is wrong.
  const onlyLeaks = result.checkErrors === 0 && result.corruptions === 0 && result.leaks === 0;
  const repair = request.fixErrors || (request.fixLeaks && onlyLeaks);
  for (let index = 0; index < s.header.l1Entries; index++) {
    const at = index * 8;
    const hi = s.l1.getUint32(at);
    const lo = s.l1.getUint32(at + 4);
    const offset = entryOffset(hi, lo);
    if (offset === 0) continue;
    const cluster = Math.floor(offset / s.clusterBytes);
    const refcount = await c.refcounts.get(c, cluster);
    if (refcount === null) continue;
    if ((refcount === 1) !== ((hi & HI_COPIED) !== 0)) {
      const text = await c.refcounts.text(c, cluster);
      const line = `OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${entryHex(hi, lo)} refcount=${text}`;
      if (repair) {
        request.report(`Repairing ${line}`);
        await repairL1Entry(c, index, refcount === 1);
      } else {
        corruption(c, `ERROR ${line}`);
      }
    }
    await checkL2Flags(c, offset, repair);
  }
}

async function repairL1Entry(c: Check, index: number, copied: boolean): Promise<void> {
  const { l1, header } = c.s;
  const at = index * 8;
  const hi = l1.getUint32(at);
  const entry = Buffer.alloc(8);
  entry.writeUInt32BE(withFlag(hi, copied), 0);
  entry.writeUInt32BE(l1.getUint32(at + 4), 4);
  await writeTable(c, header.l1Offset + at, entry, 'active-l1');
  l1.setUint32(at, withFlag(hi, copied));
  c.result.corruptionsFixed++;
}

function withFlag(hi: number, copied: boolean): number {
  return (copied ? hi | HI_COPIED : hi & ~HI_COPIED) >>> 0;
}

async function checkL2Flags(c: Check, tableOffset: number, repair: boolean): Promise<void> {
  const { s, request, result } = c;
  if (tableOffset >= c.fileBytes) return;
  await c.turns.next();
  const view = await readL2(c, tableOffset, 'check_oflag_copied()');
  let fixed = 0;
  const words = wordsOf(view);
  const next = (index: number): number => usedEntry(words, index, s.l2EntryBytes);
  for (let index = next(0); index < s.l2Entries; index = next(index + 1)) {
    const at = index * s.l2EntryBytes;
    const hi = view.getUint32(at);
    const lo = view.getUint32(at + 4);
    if ((hi === 0 && lo === 0) || (hi & HI_COMPRESSED) !== 0) continue;
    const offset = entryOffset(hi, lo);
    const copied = (hi & HI_COPIED) !== 0;
    if (offset === 0 && !(s.hasDataFile && copied)) continue;
    const cluster = Math.floor(offset / s.clusterBytes);
    // Clusters of an external data file are not counted: all belong to the active image.
    let refcount: number | null | undefined = s.hasDataFile ? 1 : c.refcounts.peek(s, cluster);
    if (refcount === undefined) refcount = await c.refcounts.get(c, cluster);
    if (refcount === null || (refcount === 1) === copied) continue;
    const text = s.hasDataFile ? '1' : await c.refcounts.text(c, cluster);
    const line = `OFLAG_COPIED data cluster: l2_entry=${entryHex(hi, lo)} refcount=${text}`;
    if (repair) {
      request.report(`Repairing ${line}`);
      view.setUint32(at, withFlag(hi, refcount === 1));
      fixed++;
    } else {
      corruption(c, `ERROR ${line}`);
    }
  }
  if (fixed === 0) return;
  await writeTable(
    c,
    tableOffset,
    new Uint8Array(view.buffer, view.byteOffset, view.byteLength),
    'active-l2',
  );
  result.corruptionsFixed += fixed;
}
