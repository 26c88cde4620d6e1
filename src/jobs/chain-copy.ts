/**
 * The work of jobs that move data along a backing chain: one pass over a node from its start to its end, several
 * requests at once.
 *
 * What an extent is and how it is copied the caller says. Here: order, speed, pause points, error policies. The job
 * rests only when no request is under way.
 */

import type { BlockdevOnError } from '../../schema/generated/types.ts';
import { nextTurn } from '../aio/host/turns.ts';
import type { CopyFailure } from '../block/copy/mover.ts';
import { CoQueue } from '../coroutine/co-queue.ts';
import { BlockError, errnoOf, ioError } from '../errors/error.ts';
import { type BlockJob, handleError, limitRate } from './block-job.ts';
import { addProgress, isCancelled, mustPause, pausePoint } from './job-driver.ts';

/** Data copied by one request. A guest's request to the same place waits for it. */
export const CHUNK_BYTES = 512 * 1024;
/** Requests at once at most. It begins with one, and again after an error: where one fails, others are likely to. */
const MAX_REQUESTS = 8;
/** Turns of the event loop in which a command that woke the job is answered. */
const COMMAND_TURNS = 4;
/** Longest part whose block status is asked for at once. */
const STATUS_BYTES = 1024 ** 3;

export interface Extent {
  readonly bytes: number;
  /** It has to be copied. */
  readonly copy: boolean;
}

export interface ChainCopy {
  readonly block: BlockJob;
  readonly lengthBytes: number;
  readonly onError: BlockdevOnError;
  /** What an ignored error does: the place is left out and the job fails in the end, or it is tried again. */
  readonly ignored: 'skip' | 'retry';
  /** The first extent at `offset`, at most `bytes` long. */
  next(offset: number, bytes: number): Promise<Extent>;
  /** Copies what can be copied within this turn, from the start of the range; how much it was. */
  copyNow(offset: number, bytes: number): number;
  /** Copies the range; null: done. */
  copy(offset: number, bytes: number): Promise<CopyFailure | null>;
}

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

interface Pass {
  readonly copy: ChainCopy;
  /** Looked at up to here. */
  position: number;
  /** Found out and not copied yet, in order; what failed comes first. */
  readonly pending: Range[];
  running: number;
  /** Requests that may be under way. */
  maxRequests: number;
  readonly ended: CoQueue;
  /** The error that ends the job now, or in the end. */
  failure: BlockError | null;
  ignored: BlockError | null;
}

/** Copies all there is. Returns early when the job is cancelled; throws the error that ends it. */
export async function copyChain(copy: ChainCopy): Promise<void> {
  const { block, lengthBytes } = copy;
  const pass: Pass = {
    copy,
    position: 0,
    pending: [],
    running: 0,
    maxRequests: 1,
    ended: new CoQueue(),
    failure: null,
    ignored: null,
  };
  try {
    while (pass.failure === null && !isCancelled(block.job)) {
      if (mustPause(block.job)) {
        await atRest(pass);
        await pausePoint(block.job);
        if (!isCancelled(block.job)) await letCommandBeAnswered();
        continue;
      }
      const range = await nextRange(pass);
      if (range !== null) await copySome(pass, range);
      else if (pass.running > 0) await pass.ended.wait();
      else if (pass.position >= lengthBytes && pass.pending.length === 0) break;
    }
  } finally {
    await atRest(pass);
  }
  if (isCancelled(block.job)) return;
  const error = pass.failure ?? pass.ignored;
  if (error !== null) throw error;
}

/** The command that ended a pause is answered before the job goes on. */
async function letCommandBeAnswered(): Promise<void> {
  for (let turn = 0; turn < COMMAND_TURNS; turn++) await nextTurn();
}

async function atRest(pass: Pass): Promise<void> {
  while (pass.running > 0) await pass.ended.wait();
}

/** What is to be copied next; null: there is nothing, or only after another look at things. */
async function nextRange(pass: Pass): Promise<Range | null> {
  const { copy, pending } = pass;
  const first = pending.shift();
  if (first !== undefined) return first;
  const { position } = pass;
  const left = copy.lengthBytes - position;
  if (left === 0) return null;
  let extent: Extent;
  try {
    extent = await copy.next(position, Math.min(left, STATUS_BYTES));
  } catch (error) {
    const bytes = Math.min(left, CHUNK_BYTES);
    pass.position += bytes;
    failed(pass, { offset: position, bytes }, { isRead: true, offset: position, error });
    return null;
  }
  pass.position += extent.bytes;
  // Nobody else would get a turn while an image without data is looked at.
  await nextTurn();
  if (!extent.copy) {
    addProgress(copy.block.job, extent.bytes);
    return null;
  }
  return { offset: position, bytes: extent.bytes };
}

/** Copies from the start of the range as much as can be at once; the rest comes next. */
async function copySome(pass: Pass, { offset, bytes }: Range): Promise<void> {
  const { copy, pending } = pass;
  const { job, rate } = copy.block;
  // Copies that need no waiting would keep everybody else from their turn.
  await nextTurn();
  const done = rate.bytesPerSecond === 0 ? copy.copyNow(offset, bytes) : 0;
  const taken = done || Math.min(bytes, CHUNK_BYTES);
  if (taken < bytes) pending.unshift({ offset: offset + taken, bytes: bytes - taken });
  if (done > 0) addProgress(job, done);
  else await startCopy(pass, { offset, bytes: taken });
}

/** Begins a copy, and waits as long as it takes until the next may be begun. */
async function startCopy(pass: Pass, range: Range): Promise<void> {
  const { copy, ended } = pass;
  const { block } = copy;
  pass.running++;
  void copy.copy(range.offset, range.bytes).then((failure) => {
    if (failure !== null) failed(pass, range, failure);
    else {
      addProgress(block.job, range.bytes);
      pass.maxRequests = Math.min(pass.maxRequests + 1, MAX_REQUESTS);
    }
    pass.running--;
    ended.wakeAll();
  });
  while (pass.running >= pass.maxRequests) await ended.wait();
  if (block.rate.bytesPerSecond === 0) return;
  // A limit is kept by resting, and the job rests with nothing under way.
  await atRest(pass);
  if (pass.failure !== null) return;
  await limitRate(block, range.bytes);
  if (!isCancelled(block.job)) await letCommandBeAnswered();
}

function failed(pass: Pass, range: Range, { isRead, error }: CopyFailure): void {
  const { copy, pending } = pass;
  const { block } = copy;
  pass.maxRequests = 1;
  const known = error instanceof BlockError ? error : ioError(errnoOf(error), error);
  // The others that were under way when the job was told to stop or to end are not worth more words.
  const action =
    pass.failure !== null || block.ioStatus !== 'ok'
      ? 'stop'
      : handleError(block, copy.onError, isRead ? 'read' : 'write', known);
  if (action === 'report') pass.failure = ioError(known.errno, known);
  else if (action === 'stop' || copy.ignored === 'retry') pending.unshift(range);
  else {
    pass.ignored ??= ioError(known.errno, known);
    addProgress(block.job, range.bytes);
  }
}
