/**
 * The file driver's part in copies that the kernel makes from one file to another.
 *
 * Whoever copies a whole image will want it on stable storage in the end. So that the disk does not stand idle until
 * then, the kernel is told every so often to begin writing what has been copied.
 */

import { copyFileRangeAsync } from '../../../aio/ffi.ts';
import type { FilePlace, RangeSink } from '../../../block/contract/copy-range.ts';
import type { FileNode, FileState } from './io.ts';

/** Small enough to leave little for the flush in the end, large enough for the disk to work in long runs. */
const WRITEBACK_BYTES = 16 * 1024 * 1024;

export function copyRangeFrom(
  { state: { fd } }: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  sink: RangeSink,
): Promise<boolean> {
  return sink({ fd, offset }, 0, bytes);
}

export async function copyRangeTo(
  { state }: FileNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  from: FilePlace,
): Promise<boolean> {
  for (let done = 0; done < bytes; ) {
    const copied = await copyFileRangeAsync(
      from.fd,
      from.offset + done,
      state.fd,
      offset + done,
      bytes - done,
    );
    // 0: the source ends here; what is behind its end reads as zeroes.
    if (copied <= 0) return false;
    done += copied;
  }
  countCopied(state, bytes);
  return true;
}

function countCopied(state: FileState, bytes: number): void {
  state.writeback.bytes += bytes;
  if (state.writeback.bytes >= WRITEBACK_BYTES) beginWriteback({ state });
}

export function beginWriteback({ state }: Pick<FileNode, 'state'>): void {
  const { writeback, engine, fd } = state;
  if (writeback.running !== null) return;
  writeback.bytes = 0;
  // All there is, to the end of the file. Whether it worked does not matter: a flush will tell.
  writeback.running = engine.startWriteback(fd, 0, 0).then(() => {
    writeback.running = null;
  });
}
