/**
 * Replaying the log of an image that was not closed: in memory when it is opened, so that a read-only opening changes
 * nothing, and in the file once it may be written to.
 */

import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import type { TableCache } from '../shared/table-cache.ts';
import { readBytes, writeBytes } from '../shared/table-io.ts';
import { type Header, invalid } from './layout.ts';
import { LOG_SECTOR_BYTES, type LoggedWrite, type Replay, readLog } from './log.ts';
import { NO_LOG, type VhdxNode, writeHeader } from './map.ts';

/** Longest log that is read; programs make logs of 1 MiB. */
const MAX_LOG_BYTES = 256 * 1024 * 1024;
/** Longest range of zeroes that is replayed, and longest file: tables are shorter, and disks have 64 TiB at most. */
const MAX_ZERO_BYTES = 16 * 1024 * 1024;
const MAX_FILE_BYTES = 2 ** 47;

/** What the log says; null when it is empty. */
export async function loadLog(
  file: BlockChild,
  guard: GraphReadGuard,
  header: Header,
): Promise<Replay | null> {
  if (header.logGuid.equals(NO_LOG)) return null;
  if (header.logBytes > MAX_LOG_BYTES || header.logOffset + header.logBytes > file.node.totalBytes)
    throw invalid('The log of the image reaches behind the end of the file');
  const log = await readBytes(file, guard, header.logOffset, header.logBytes);
  const replay = readLog(log, header.logGuid);
  const isSane = replay.writes.every(({ data, bytes }) => data !== null || bytes <= MAX_ZERO_BYTES);
  if (!isSane || replay.fileBytes > MAX_FILE_BYTES) throw invalid('The log of the image is damaged');
  return replay;
}

/** Makes `bytes`, which are those of the file at `offset`, what they are after the replay. */
export function patch(replay: Replay | null, offset: number, bytes: Buffer): void {
  for (const write of replay?.writes ?? []) {
    const from = Math.max(offset, write.offset);
    const to = Math.min(offset + bytes.length, write.offset + write.bytes);
    if (from >= to) continue;
    if (write.data === null) bytes.fill(0, from - offset, to - offset);
    else write.data.copy(bytes, from - offset, from - write.offset, to - write.offset);
  }
}

/** Puts what the log holds of the tables in [from, to) into their cache, where it stays until `release`. */
export async function preload(
  cache: TableCache,
  writes: readonly LoggedWrite[],
  from: number,
  to: number,
): Promise<void> {
  for (const { offset, bytes, data } of writes) {
    for (let at = Math.max(offset, from); at < Math.min(offset + bytes, to); at += LOG_SECTOR_BYTES) {
      const known = cache.get(at);
      const table =
        known ??
        (await cache.load(at, async (memory) => {
          memory.buf.fill(0);
        }));
      if (known === undefined) table.pins++;
      if (data === null) table.mem.buf.fill(0);
      else data.copy(table.mem.buf);
    }
  }
}

/** Does in the file what has been done in memory; the log is empty afterwards. */
export async function replayInFile(node: VhdxNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  const { replay, file } = state;
  if (replay === null) return;
  if (replay.fileBytes > file.node.totalBytes)
    await co.truncate(file.node, guard, replay.fileBytes, false, 'off', false);
  for (const { offset, bytes, data } of replay.writes)
    await writeBytes(file, guard, offset, data ?? Buffer.alloc(bytes));
  await co.flush(file.node, guard);
  await writeHeader(node, guard, { logGuid: NO_LOG });
  state.replay = null;
  state.repaired = replay.writes.length > 0;
}
