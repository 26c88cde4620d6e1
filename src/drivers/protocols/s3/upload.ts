/**
 * A new object, written from its start to its end: in parts, a few of which are open for writes that come out of order,
 * and a few of which are on their way. The object appears when it is finished, all
 * at once, when every byte has been written, as data or as zeroes. An upload that is given up leaves nothing.
 *
 * A write behind the open parts cannot be done any more and fails: objects have no other way to be written.
 */

import { copyFromVector, copyToVector, fillVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { createSlots } from '../../net/slots.ts';
import { callS3, element, escapeXml, type S3Calls } from './calls.ts';

export interface Upload {
  /** Null vector: zeroes. */
  write(offset: number, bytes: number, vec: IoVector | null): Promise<void>;
  /** Reads back what has not gone yet. */
  read(offset: number, vec: IoVector): Promise<void>;
  /** All written so far is safe if it is the whole object; otherwise it is when the object is finished. */
  flush(): Promise<void>;
  /** Every byte has been written, data or zeroes. */
  readonly whole: boolean;
  /** Makes the object appear. */
  finish(): Promise<void>;
  /** Leaves nothing of it, if it is not finished. */
  abandon(): Promise<void>;
}

/** Limits of S3: parts of 5 MiB at least, all but the last, and 10,000 of them. */
const MIN_PART_BYTES = 8 * 1024 * 1024;
const MAX_PARTS = 10_000;
const MIB = 1024 * 1024;
/** A part is closed when a write begins so far behind its end. */
const REORDER_BYTES = 64 * 1024 * 1024;
const PARALLEL_UPLOADS = 4;

interface Part {
  readonly number: number;
  readonly offset: number;
  readonly bytes: number;
  /** Null: zeroes so far. */
  data: Buffer | null;
}

export function partBytes(sizeBytes: number): number {
  return Math.max(MIN_PART_BYTES, Math.ceil(sizeBytes / MAX_PARTS / MIB) * MIB);
}

interface Coverage {
  add(from: number, to: number): void;
  /** Everything before `end` has been added. */
  reaches(end: number): boolean;
}

/** Which bytes have been written: few ranges, since writers go from front to back. */
function createCoverage(): Coverage {
  let ranges: { from: number; to: number }[] = [];
  return {
    add(from, to) {
      const apart = ranges.filter((range) => range.to < from || range.from > to);
      const touching = ranges.filter((range) => range.to >= from && range.from <= to);
      const merged = {
        from: Math.min(from, ...touching.map((range) => range.from)),
        to: Math.max(to, ...touching.map((range) => range.to)),
      };
      ranges = [...apart, merged];
    },
    reaches: (end) => end === 0 || (ranges.length === 1 && ranges[0]!.from === 0 && ranges[0]!.to >= end),
  };
}

export function createUpload(calls: S3Calls, sizeBytes: number): Upload {
  const step = partBytes(sizeBytes);
  const open = new Map<number, Part>();
  const etags = new Map<number, string>();
  const sending = new Set<Promise<void>>();
  const slots = createSlots(PARALLEL_UPLOADS);
  let uploadId: Promise<string> | null = null;
  /** Parts below this number are closed. */
  let closedBelow = 1;
  let highestEnd = 0;
  const covered = createCoverage();
  let failure: unknown = null;
  let finishing: Promise<void> | null = null;

  const partOf = (offset: number): number => Math.floor(offset / step) + 1;
  const lastPart = Math.max(1, Math.ceil(sizeBytes / step));

  function begin(): Promise<string> {
    uploadId ??= callS3(calls, { method: 'POST', query: 'uploads=' }).then(({ text }) => {
      const id = element(text, 'UploadId');
      if (id === null) throw new BlockError('S3: no UploadId in the answer', { errno: E.EIO });
      return id;
    });
    return uploadId;
  }

  function openPart(number: number): Part {
    const known = open.get(number);
    if (known !== undefined) return known;
    const offset = (number - 1) * step;
    const part = { number, offset, bytes: Math.min(step, sizeBytes - offset), data: null };
    open.set(number, part);
    return part;
  }

  async function send(part: Part): Promise<void> {
    const id = await begin();
    const body = part.data ?? Buffer.alloc(part.bytes);
    const { head } = await callS3(calls, {
      method: 'PUT',
      query: `partNumber=${part.number}&uploadId=${encodeURIComponent(id)}`,
      headers: { 'content-type': 'application/octet-stream' },
      body,
    });
    const etag = head.header('etag');
    if (etag === undefined) throw new BlockError('S3: a part without ETag', { errno: E.EIO });
    etags.set(part.number, etag);
    part.data = null;
  }

  /** Closes the parts below `number` and sends them; waits while too many are on their way. */
  async function closeBelow(number: number): Promise<void> {
    const waiting: Promise<void>[] = [];
    for (; closedBelow < number; closedBelow++) {
      const part = openPart(closedBelow);
      open.delete(closedBelow);
      const job = slots
        .run(() => send(part))
        .catch((error: unknown) => {
          failure ??= error;
        })
        .finally(() => sending.delete(job));
      sending.add(job);
      if (sending.size > PARALLEL_UPLOADS) waiting.push(Promise.race(sending));
    }
    await Promise.all(waiting);
  }

  function checkFailure(): void {
    if (failure !== null) throw failure;
  }

  async function complete(): Promise<void> {
    checkFailure();
    if (sizeBytes === 0) {
      await callS3(calls, { method: 'PUT', body: Buffer.alloc(0) });
      return;
    }
    await closeBelow(lastPart + 1);
    while (sending.size > 0) await Promise.race(sending);
    checkFailure();
    const parts = Array.from(
      { length: lastPart },
      (_, i) =>
        `<Part><PartNumber>${i + 1}</PartNumber><ETag>${escapeXml(etags.get(i + 1) as string)}</ETag></Part>`,
    );
    await callS3(calls, {
      method: 'POST',
      query: `uploadId=${encodeURIComponent(await begin())}`,
      headers: { 'content-type': 'application/xml' },
      body: Buffer.from(`<CompleteMultipartUpload>${parts.join('')}</CompleteMultipartUpload>`),
    });
  }

  return {
    async write(offset, bytes, vec) {
      checkFailure();
      if (finishing !== null) throw new BlockError('The object is finished', { errno: E.EIO });
      const first = partOf(offset);
      if (first < closedBelow)
        throw new BlockError('An object can only be written from its start to its end', { errno: E.ESPIPE });
      for (let at = offset; at < offset + bytes; ) {
        const part = openPart(partOf(at));
        const inPart = at - part.offset;
        const length = Math.min(part.bytes - inPart, offset + bytes - at);
        if (vec !== null) {
          part.data ??= Buffer.alloc(part.bytes);
          copyFromVector(sliceVector(vec, at - offset, length), part.data.subarray(inPart));
        } else part.data?.fill(0, inPart, inPart + length);
        at += length;
      }
      covered.add(offset, offset + bytes);
      highestEnd = Math.max(highestEnd, offset + bytes);
      const keepFrom = highestEnd - REORDER_BYTES;
      if (keepFrom > 0) await closeBelow(partOf(keepFrom));
      checkFailure();
    },
    async read(offset, vec) {
      for (let at = 0; at < vec.bytes; ) {
        const number = partOf(offset + at);
        if (number < closedBelow)
          throw new BlockError('An object can only be read when it is finished', { errno: E.ESPIPE });
        const from = offset + at - (number - 1) * step;
        const length = Math.min(step - from, vec.bytes - at);
        const target = sliceVector(vec, at, length);
        const data = open.get(number)?.data ?? null;
        if (data === null) fillVector(target, 0);
        else copyToVector(target, data.subarray(from, from + length));
        at += length;
      }
    },
    get whole() {
      return covered.reaches(sizeBytes);
    },
    async flush() {
      checkFailure();
      if (finishing !== null || covered.reaches(sizeBytes)) await this.finish();
    },
    finish() {
      finishing ??= complete().catch((error: unknown) => {
        failure ??= error;
        throw error;
      });
      return finishing;
    },
    async abandon() {
      if (finishing !== null) return;
      finishing = Promise.resolve();
      failure ??= new BlockError('The upload was given up', { errno: E.ECANCELED });
      while (sending.size > 0) await Promise.race(sending);
      if (uploadId === null) return;
      const id = await uploadId;
      await callS3(calls, { method: 'DELETE', query: `uploadId=${encodeURIComponent(id)}` });
    },
  };
}
