/**
 * Opening and closing: from the bytes of an image to a Qcow2State, with every check on the way.
 *
 * Everything in the header is hostile: sizes are checked before anything is allocated. Error texts are the original's.
 */

import { isZero } from '../../../../aio/memory.ts';
import type { OpenContext } from '../../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { Role } from '../../../../block/contract/request.ts';
import type { BlockChild } from '../../../../block/graph/node.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { CoMutex } from '../../../../coroutine/co-mutex.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../../errors/error.ts';
import { TableCache } from '../../shared/table-cache.ts';
import { loadBitmaps, markBitmapsInUse } from '../bitmaps/bitmaps.ts';
import { check } from '../check/check.ts';
import {
  type Header,
  headerClusterBits,
  parseFields,
  parseHeader,
  readBackingName,
  readExtensions,
  unknownFeatures,
} from '../layout/header.ts';
import {
  AUTOCLEAR_KNOWN,
  Autoclear,
  Incompat,
  MAX_L1_BYTES,
  MAX_REFTABLE_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  readU64,
  SUBCLUSTERS,
  viewOf,
} from '../layout/layout.ts';
import { MetadataMap, rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { debugEvent } from '../metadata/debug.ts';
import { createFound } from '../metadata/mapping.ts';
import { barrier, readMetadata, writeHeader } from '../metadata/metadata-io.ts';
import { learnInactiveL2 } from '../snapshots/inactive-l2.ts';
import { loadSnapshots } from '../snapshots/table.ts';
import { checkCryptoHeader, openCipher } from './encryption.ts';
import { type CheckedOptions, checkOptions, type Qcow2Options, switches } from './options.ts';

const FIRST_READ_BYTES = 512;
/** Longest time a timer of Node can be set to. */
const MAX_TIMER_MS = 2 ** 31 - 1;
/** Offset bits of refcount table entries: 9 to 63; ours end where doubles are exact. */
const REFTABLE_LOW_MASK = 512;
/** Part of a table that is looked at at once for anything but zeroes; tables are whole clusters. */
const SCAN_BYTES = 512;

function invalid(message: string, errno: number = E.EINVAL): BlockError {
  return new BlockError(message, { errno });
}

export async function open(node: Qcow2Node, context: OpenContext): Promise<Qcow2State> {
  const options = context.options as Qcow2Options;
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const { graphLock } = node.layer;
  const forCheck = context.purpose === 'check';
  const start = await graphLock.withRead((guard) => readStart(file, guard));
  const header = parseFields(start);
  checkHeader(header, start, node.readOnly || forCheck, forCheck);
  const checked = checkOptions(options, header);
  readExtensions(header, start);
  const dataFile = await openDataFile(context, header, file);
  if (dataFile === file && (header.autoclear & Autoclear.dataFileRaw) !== 0)
    throw invalid('data-file-raw requires a data file');
  checkCryptoHeader(header);
  readBackingName(header, start);
  const s = createState(node, context, checked, header, file, dataFile);
  // From here on the helpers that work on an open node can be used.
  node.state = s;
  await graphLock.withRead(async (guard) => {
    s.l1 = viewOf(await readMetadata(node, guard, header.l1Offset, header.l1Entries * 8));
    await loadRefcountTable(node, guard);
    s.freshFrom = Math.ceil(file.node.totalBytes / s.clusterBytes);
    // A device does not grow, and what is behind its end is not there.
    if (file.node.driver.growsWithZeroes !== true) s.freshFrom = Number.POSITIVE_INFINITY;
    // A check reads the table by itself, whatever is wrong with it.
    if (!forCheck) await loadSnapshots(node, guard, false);
    await learnInactiveL2(node, guard);
    await openCipher(node, guard, options.encrypt, context);
  });
  rebuildMetadata(s);
  await context.openBacking(
    header.backingFile === null ? null : { filename: header.backingFile, format: header.backingFormat },
  );
  // Length first: what follows may read and write guest data.
  node.totalBytes = Math.ceil(header.size / 512) * 512;
  await graphLock.withRead((guard) => loadBitmaps(node, guard));
  startCleaning(s, checked.cleanIntervalSeconds);
  return s;
}

async function readStart(file: BlockChild, guard: GraphReadGuard): Promise<Buffer> {
  // There is no state yet, so this reads by hand.
  const read = async (bytes: number): Promise<Buffer> => {
    const holder = { state: { file } } as unknown as Qcow2Node;
    try {
      return await readMetadata(holder, guard, 0, bytes);
    } catch (error) {
      throw errnoError('Could not read qcow2 header', errnoOf(error));
    }
  };
  const bits = headerClusterBits(await read(FIRST_READ_BYTES));
  return read(2 ** bits);
}

/** Checks of the header that need nothing but the header, in the original's order. */
function checkHeader(header: Header, start: Buffer, readOnly: boolean, forCheck: boolean): void {
  const clusterBytes = 2 ** header.clusterBits;
  const unknown = unknownFeatures(header, start);
  if (unknown !== null) throw invalid(unknown, E.ENOTSUP);
  if ((header.incompatible & Incompat.corrupt) !== 0 && !readOnly) {
    throw invalid('qcow2: Image is corrupt; cannot be opened read/write', E.EACCES);
  }
  const extended = (header.incompatible & Incompat.extendedL2) !== 0;
  if (extended && clusterBytes / SUBCLUSTERS < FIRST_READ_BYTES) {
    throw invalid(`Unsupported subcluster size: ${clusterBytes / SUBCLUSTERS}`);
  }
  if (header.refcountOrder > 6)
    throw invalid('Reference count entry width too large; may not exceed 64 bits');
  if (header.refcountTableClusters * clusterBytes > MAX_REFTABLE_BYTES)
    throw invalid('Reference count table too large');
  if (header.refcountTableClusters === 0 && !forCheck)
    throw invalid('Image does not contain a reference count table');
  checkTable(
    header.refcountTableOffset,
    header.refcountTableClusters * clusterBytes,
    MAX_REFTABLE_BYTES,
    clusterBytes,
    'Reference count table',
  );
  if (header.snapshotCount > MAX_SNAPSHOTS) throw invalid('Snapshot table too large', E.EFBIG);
  checkTable(
    header.snapshotsOffset,
    header.snapshotCount * 40,
    MAX_SNAPSHOT_TABLE_BYTES,
    clusterBytes,
    'Snapshot table',
  );
  checkTable(header.l1Offset, header.l1Entries * 8, MAX_L1_BYTES, clusterBytes, 'Active L1 table');
  const l2Entries = clusterBytes / (extended ? 16 : 8);
  const needed = Math.ceil(header.size / (clusterBytes * l2Entries));
  if (needed * 8 > 2 ** 31 - 1) throw invalid('Image is too big', E.EFBIG);
  if (header.l1Entries < needed) throw invalid('L1 table is too small');
  if (!(header.size <= Number.MAX_SAFE_INTEGER)) throw invalid('Image is too big', E.EFBIG);
}

function checkTable(offset: number, bytes: number, max: number, clusterBytes: number, name: string): void {
  if (bytes > max) throw invalid(`${name} too large`, E.EFBIG);
  if (offset % clusterBytes !== 0 || offset + bytes > Number.MAX_SAFE_INTEGER)
    throw invalid(`${name} offset invalid`);
}

async function openDataFile(context: OpenContext, header: Header, file: BlockChild): Promise<BlockChild> {
  const given = await context.openChild('data-file', Role.data, false);
  if ((header.incompatible & Incompat.dataFile) === 0) {
    if (given !== null) throw invalid("'data-file' can only be set for images with an external data file");
    return file;
  }
  if (given !== null) return given;
  if (header.dataFile === null) throw invalid("'data-file' is required for this image");
  return context.openNamedChild('data-file', Role.data, header.dataFile);
}

function createState(
  node: Qcow2Node,
  { options: given, purpose }: OpenContext,
  { sizes, lazyRefcounts }: CheckedOptions,
  header: Header,
  file: BlockChild,
  dataFile: BlockChild,
): Qcow2State {
  const options = given as Qcow2Options;
  const clusterBytes = 2 ** header.clusterBits;
  const extended = (header.incompatible & Incompat.extendedL2) !== 0;
  const l2EntryBytes = extended ? 16 : 8;
  const l2Entries = clusterBytes / l2EntryBytes;
  const refcountBits = 2 ** header.refcountOrder;
  return {
    header,
    file,
    dataFile,
    hasDataFile: dataFile !== file,
    clusterBits: header.clusterBits,
    clusterBytes,
    l2EntryBytes,
    l2Entries,
    l2SpanBytes: clusterBytes * l2Entries,
    sliceEntries: sizes.sliceBytes / l2EntryBytes,
    subclusterBytes: extended ? clusterBytes / SUBCLUSTERS : clusterBytes,
    refcountOrder: header.refcountOrder,
    refcountsPerBlock: (clusterBytes * 8) / refcountBits,
    maxRefcount: Math.min(2 ** refcountBits - 1, Number.MAX_SAFE_INTEGER),
    l1: new DataView(new ArrayBuffer(0)),
    l1Dirty: new Set(),
    refcountTable: new Float64Array(0),
    l2Cache: new TableCache(sizes.sliceBytes, sizes.l2Slices),
    refcountCache: new TableCache(clusterBytes, sizes.refcountBlocks),
    found: createFound(),
    metadataLock: new CoMutex(),
    allocations: [],
    frees: [],
    generation: 0,
    durable: 0,
    writeBackPending: false,
    writeBackTimer: null,
    closing: false,
    headerUndo: [],
    switching: null,
    freeHint: 0,
    freshFrom: Number.POSITIVE_INFINITY,
    compressedTail: 0,
    unpackMemory: null,
    lazyRefcounts,
    purpose,
    ...switches(options, node.settings.discardUnmap),
    metadata: new MetadataMap(),
    refcountBlocks: new MetadataMap(),
    inactiveL2: new MetadataMap(),
    dead: false,
    corruptionReported: false,
    extras: {
      snapshots: [],
      snapshotTableBytes: 0,
      bitmaps: [],
      bitmapsOwned: false,
      cipher: null,
      cipherUsesHostOffset: true,
      luks: null,
      cleanTimer: null,
      preallocatedMetadata: null,
    },
  };
}

/** Reads the refcount table named by the header. */
export async function loadRefcountTable(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  const { refcountTableOffset, refcountTableClusters } = s.header;
  await debugEvent(node, guard, 'reftable_load');
  const bytes = await readMetadata(node, guard, refcountTableOffset, refcountTableClusters * s.clusterBytes);
  const view = viewOf(bytes);
  const table = new Float64Array(view.byteLength / 8);
  // Most of a table is empty, and opening runs before any of this is compiled: memcmp finds what is not.
  for (let start = 0; start < bytes.length; start += SCAN_BYTES) {
    const end = Math.min(start + SCAN_BYTES, bytes.length);
    if (isZero(bytes.subarray(start, end))) continue;
    for (let at = start; at < end; at += 8) {
      const entry = readU64(view, at);
      table[at / 8] = entry - (entry % REFTABLE_LOW_MASK);
    }
  }
  s.refcountTable = table;
}

/**
 * What has to be done once the node can be written to: an image that was not closed is repaired, and autoclear bits of
 * features nobody here keeps up to date go.
 */
export async function afterOpen(node: Qcow2Node): Promise<void> {
  const s = node.state;
  if (node.readOnly) return;
  await node.layer.graphLock.withRead(async (guard) => {
    try {
      // A check does its own repairs.
      const forUse = s.purpose !== 'check';
      if (forUse && (s.header.incompatible & Incompat.dirty) !== 0) await repairDirty(node, guard);
      await clearUnknownFeatures(node, guard);
      if (forUse) await markBitmapsInUse(node, guard);
    } catch (error) {
      throw await toRequestError(node, guard, error);
    }
  });
}

async function clearUnknownFeatures(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { header } = node.state;
  const [incompatible, compatible, high] = header.highFeatures;
  if (high === 0 && header.autoclear <= AUTOCLEAR_KNOWN) return;
  header.autoclear &= AUTOCLEAR_KNOWN;
  header.highFeatures = [incompatible, compatible, 0];
  await writeHeader(node, guard);
  await barrier(node, guard);
}

/** Puts right what may be late in an image that was not closed: refcounts and COPIED flags. */
async function repairDirty(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const report = (line: string): void => node.layer.note(`${line}\n`);
  const request = { fixLeaks: true, fixErrors: true, report };
  const result = await check(node, guard, request, () => reloadTables(node, guard));
  if (result.checkErrors > 0) throw new BlockError('Could not repair dirty image', { errno: E.EIO });
  if (result.corruptions > 0) throw new BlockError('Could not repair dirty image', { errno: E.EINVAL });
  const { header } = node.state;
  if ((header.incompatible & Incompat.dirty) === 0) return;
  header.incompatible &= ~Incompat.dirty;
  await writeHeader(node, guard);
  await barrier(node, guard);
}

/** Drops tables nobody has used for `seconds`; 0: never. */
export function startCleaning(s: Qcow2State, seconds: number): void {
  if (seconds <= 0) return;
  s.extras.cleanTimer = setInterval(
    () => {
      s.l2Cache.dropUnused();
      s.refcountCache.dropUnused();
    },
    Math.min(seconds * 1000, MAX_TIMER_MS),
  );
  s.extras.cleanTimer.unref();
}

export function stopCleaning(s: Qcow2State): void {
  if (s.extras.cleanTimer !== null) clearInterval(s.extras.cleanTimer);
  s.extras.cleanTimer = null;
}

/** Stops what runs in the background. */
export function stopTimers(s: Qcow2State): void {
  s.closing = true;
  stopCleaning(s);
  if (s.writeBackTimer !== null) clearTimeout(s.writeBackTimer);
}

/** Reads all tables again, after somebody changed them on the disk behind the caches (repair). */
export async function reloadTables(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  s.l2Cache.clear();
  s.refcountCache.clear();
  s.l1Dirty.clear();
  s.frees = [];
  s.freeHint = 0;
  s.compressedTail = 0;
  s.header = parseHeader(await readMetadata(node, guard, 0, s.clusterBytes));
  s.l1 = viewOf(await readMetadata(node, guard, s.header.l1Offset, s.header.l1Entries * 8));
  await loadRefcountTable(node, guard);
  await loadSnapshots(node, guard, true);
  await learnInactiveL2(node, guard);
  if (Number.isFinite(s.freshFrom)) {
    const bytes = await co.getLength(s.file.node, guard);
    s.freshFrom = Math.max(s.freshFrom, Math.ceil(bytes / s.clusterBytes));
  }
  rebuildMetadata(s);
}
