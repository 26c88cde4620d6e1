/** The commands that read and write: read, write, readv, writev, aio_read, aio_write, aio_flush, discard, flush. */

import { closeSync, openSync, readSync } from 'node:fs';
import { hostPath } from '../../aio/host/names.ts';
import { allocateIoMemory, type IoMemory, type IoVector, vectorOf } from '../../aio/memory.ts';
import { Req } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { E, strerror } from '../../errors/errno.ts';
import { errnoOf, ioError } from '../../errors/error.ts';
import type { ToolImage } from '../common/environment.ts';
import { type Arguments, exactSize, fail, length, lengths, readArguments, size } from './arguments.ts';
import { copyOnRead } from './copy-on-read.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';
import { dump, report } from './text.ts';

const DEFAULT_PATTERN = 0xcd;
const SECTOR_BYTES = 512n;

interface Transfer {
  readonly vec: IoVector;
  readonly memory: IoMemory;
  readonly bytes: number;
}

/** Memory for parts of the given lengths, filled with `fill`. */
function transfer(session: IoSession, parts: readonly number[], fill: number): Transfer {
  const bytes = sum(parts);
  const shift = session.misalign ? 16 : 0;
  const memory = allocateIoMemory(bytes + shift);
  memory.buf.fill(fill);
  const content = { buf: memory.buf.subarray(shift), addr: memory.addr + shift };
  let at = 0;
  const segments = parts.map((part) => {
    const segment = { mem: content, start: at, length: part };
    at += part;
    return segment;
  });
  return {
    vec: parts.length === 1 ? vectorOf(content, 0, bytes) : { segments, bytes },
    memory: content,
    bytes,
  };
}

function sum(parts: readonly number[]): number {
  return parts.reduce((total, part) => total + part, 0);
}

function openImage(session: IoSession): ToolImage {
  // The caller of a command has checked that there is one.
  return session.image!;
}

/** Runs a request and reports it; failures are printed as "WHAT failed: REASON". */
async function timed(session: IoSession, what: string, run: () => Promise<void>): Promise<number> {
  const startMs = performance.now();
  try {
    await run();
  } catch (error) {
    fail(session, `${what} failed: ${strerror(errnoOf(error))}`);
  }
  return performance.now() - startMs;
}

/** With -C: copies what is to be read and not there yet. Nothing else runs meanwhile, see copyOnRead. */
async function copyFirst(session: IoSession, what: string, offset: number, bytes: number): Promise<void> {
  if (session.opened?.copyOnRead !== true) return;
  await aioFlush(session);
  await timed(session, what, () => copyOnRead(openImage(session), offset, bytes));
}

function failedPattern(session: IoSession, offset: number, bytes: number): void {
  session.env.output.print(`Pattern verification failed at offset ${offset}, ${bytes} bytes\n`);
}

// ---- read ----------------------------------------------------------------------------------------------------

export async function read(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands, pattern } = readArguments(session, 'read', words, 'bCl#pP:qs#v');
  let checkLength: number | null = null;
  let checkOffset = 0;
  for (const [letter, value] of options) {
    if (letter === 'l') checkLength = size(session, value);
    else if (letter === 's') checkOffset = size(session, value);
  }
  if (operands.length !== 2) throw new UsageProblem();
  const offset = size(session, operands[0]!);
  const bytes = length(session, operands[1]!);
  if (!options.has('P') && (options.has('s') || options.has('l'))) throw new UsageProblem();
  const checked = checkLength ?? bytes - checkOffset;
  if (checkOffset < 0 || checked < 0 || checkOffset + checked > bytes) {
    fail(session, 'pattern verification range exceeds end of read data');
  }
  if (options.has('b')) checkSectors(session, operands);
  const image = openImage(session);
  const { vec, memory } = transfer(session, [bytes], 0xab);
  if (!options.has('b')) await copyFirst(session, 'read', offset, bytes);
  const elapsedMs = await timed(session, 'read', () =>
    options.has('b') ? vmState(image, 'read', offset, vec) : image.backend.preadv(offset, bytes, vec, 0),
  );
  if (pattern !== null) {
    const part = memory.buf.subarray(checkOffset, checkOffset + checked);
    if (!part.every((byte) => byte === pattern)) {
      failedPattern(session, offset + checkOffset, checked);
      session.failed = true;
    }
  }
  if (options.has('q')) return;
  if (options.has('v')) dump(session, memory.buf.subarray(0, bytes), offset);
  report(session, 'read', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
}

/** The part of an image for the state of virtual machines, in whichever layer has one. */
async function vmState(
  image: ToolImage,
  verb: 'read' | 'write',
  offset: number,
  vec: IoVector,
): Promise<void> {
  let node: BlockNode | undefined = image.node;
  while (node !== undefined && node.driver.vmState === undefined) node = node.primaryChild?.node;
  if (node === undefined) throw ioError(E.ENOTSUP);
  const owner = node;
  await owner.layer.graphLock.withRead((guard) => owner.driver.vmState![verb](owner, guard, offset, vec));
}

function checkSectors(session: IoSession, [offset = '', bytes = '']: readonly string[]): void {
  for (const [text, name] of [
    [offset, 'offset'],
    [bytes, 'count'],
  ] as const) {
    // Exact also where numbers are not.
    const value = exactSize(text);
    if (value % SECTOR_BYTES !== 0n) fail(session, `${value} is not a sector-aligned value for '${name}'`);
  }
}

// ---- write ---------------------------------------------------------------------------------------------------

function checkWriteOptions(session: IoSession, { options, operands }: Arguments): void {
  const given = (letter: string): boolean => options.has(letter);
  if (operands.length !== 2) throw new UsageProblem();
  if (given('b') && given('z')) fail(session, '-b and -z cannot be specified at the same time');
  if (given('f') && (given('b') || given('c')))
    fail(session, '-f and -b or -c cannot be specified at the same time');
  if (given('n') && !given('z')) fail(session, '-n requires -z to be specified');
  if (given('u') && !given('z')) fail(session, '-u requires -z to be specified');
  if ([given('z'), given('P'), given('s')].filter(Boolean).length > 1) {
    fail(session, 'Only one of -z, -P, and -s can be specified at the same time');
  }
}

/** Fills the buffer with what the file holds, over and over. */
function fillFromFile(session: IoSession, name: string, buf: Buffer): void {
  try {
    const fd = openSync(hostPath(name), 'r');
    try {
      const got = readSync(fd, buf, 0, buf.length, null);
      for (let at = got; got > 0 && at < buf.length; at += got)
        buf.copy(buf, at, 0, Math.min(got, buf.length - at));
      if (got > 0) return;
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    session.env.output.note(`${name}: ${strerror(errnoOf(error))}\n`);
    throw new CommandFailed();
  }
  session.env.output.note(`${name}: file is empty\n`);
  throw new CommandFailed();
}

export async function write(session: IoSession, words: readonly string[]): Promise<void> {
  const given = readArguments(session, 'write', words, 'bcCfnpP:qs:uz');
  const { options, operands, pattern } = given;
  checkWriteOptions(session, given);
  const offset = size(session, operands[0]!);
  const bytes = options.has('n') ? size(session, operands[1]!) : length(session, operands[1]!, ' without -n');
  if (options.has('b') || options.has('c')) checkSectors(session, operands);
  const image = openImage(session);
  const flags = image.writeFlags | (options.has('f') ? Req.fua : 0);
  const { vec, memory } = transfer(session, options.has('z') ? [0] : [bytes], pattern ?? DEFAULT_PATTERN);
  if (options.has('s')) fillFromFile(session, options.get('s')!, memory.buf.subarray(0, bytes));
  const elapsedMs = await timed(session, 'write', () => {
    if (options.has('b')) return vmState(image, 'write', offset, vec);
    if (options.has('z')) return image.backend.pwriteZeroes(offset, bytes, flags | zeroFlags(options));
    if (options.has('c')) return image.backend.pwritevCompressed(offset, bytes, vec);
    return image.backend.pwritev(offset, bytes, vec, flags);
  });
  if (!options.has('q'))
    report(session, 'wrote', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
}

function zeroFlags(options: ReadonlyMap<string, string>): number {
  return (options.has('u') ? Req.mayUnmap : 0) | (options.has('n') ? Req.noFallback : 0);
}

// ---- vectors -------------------------------------------------------------------------------------------------

interface VectorRequest {
  readonly offset: number;
  readonly parts: readonly number[];
  readonly options: ReadonlyMap<string, string>;
  readonly pattern: number | null;
}

function vectorArguments(
  session: IoSession,
  command: string,
  words: readonly string[],
  letters: string,
): VectorRequest {
  return vectorRequest(session, readArguments(session, command, words, letters));
}

function vectorRequest(session: IoSession, { options, operands, pattern }: Arguments): VectorRequest {
  if (operands.length < 2) throw new UsageProblem();
  const offset = size(session, operands[0]!);
  return { options, pattern, offset, parts: lengths(session, operands.slice(1)) };
}

export async function readv(session: IoSession, words: readonly string[]): Promise<void> {
  const request = vectorArguments(session, 'readv', words, 'CP:qv');
  await copyFirst(session, 'readv', request.offset, sum(request.parts));
  if (!(await readVector(session, request))) session.failed = true;
}

/** Reads and reports; false: the content is not what was expected. */
async function readVector(
  session: IoSession,
  { options, offset, parts, pattern }: VectorRequest,
): Promise<boolean> {
  const { vec, memory, bytes } = transfer(session, parts, 0xab);
  const image = openImage(session);
  const elapsedMs = await timed(session, 'readv', () => image.backend.preadv(offset, bytes, vec, 0));
  const isExpected = pattern === null || memory.buf.subarray(0, bytes).every((byte) => byte === pattern);
  if (!isExpected) failedPattern(session, offset, bytes);
  if (options.has('q')) return isExpected;
  if (options.has('v')) dump(session, memory.buf.subarray(0, bytes), offset);
  report(session, 'read', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
  return isExpected;
}

export async function writev(session: IoSession, words: readonly string[]): Promise<void> {
  await writeVector(session, 'writev', vectorArguments(session, 'writev', words, 'CfqP:'));
}

async function writeVector(
  session: IoSession,
  what: string,
  { options, offset, parts, pattern }: VectorRequest,
): Promise<void> {
  const { vec, bytes } = transfer(session, parts, pattern ?? DEFAULT_PATTERN);
  const image = openImage(session);
  const flags = image.writeFlags | (options.has('f') ? Req.fua : 0);
  const elapsedMs = await timed(session, what, () => image.backend.pwritev(offset, bytes, vec, flags));
  if (!options.has('q'))
    report(session, 'wrote', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
}

// ---- asynchronous --------------------------------------------------------------------------------------------

/** Starts a request whose outcome is printed when it is there; the command was a success once it has started. */
function start(session: IoSession, request: Promise<unknown>): void {
  const reported: Promise<void> = request
    .then(
      () => undefined,
      (error: unknown) => {
        if (!(error instanceof CommandFailed)) throw error;
      },
    )
    .finally(() => {
      session.env.output.flush();
      session.pending.delete(reported);
    });
  session.pending.add(reported);
}

export async function aioRead(session: IoSession, words: readonly string[]): Promise<void> {
  const given = readArguments(session, 'aio_read', words, 'CP:iqv', 'i');
  if (given.options.has('i')) {
    session.env.output.print('injecting invalid read request\n');
    return;
  }
  const request = vectorRequest(session, given);
  await copyFirst(session, 'readv', request.offset, sum(request.parts));
  start(session, readVector(session, request));
}

export async function aioWrite(session: IoSession, words: readonly string[]): Promise<void> {
  const given = readArguments(session, 'aio_write', words, 'CfiP:quz', 'i');
  const { options, operands } = given;
  if (options.has('i')) {
    session.env.output.print('injecting invalid write request\n');
    return;
  }
  if (operands.length < 2) throw new UsageProblem();
  if (options.has('z') && operands.length !== 2) fail(session, '-z supports only a single length parameter');
  if (options.has('u') && !options.has('z')) fail(session, '-u requires -z to be specified');
  if (!options.has('z')) {
    start(session, writeVector(session, 'aio_write', vectorRequest(session, given)));
    return;
  }
  const offset = size(session, operands[0]!);
  const bytes = size(session, operands[1]!);
  const image = openImage(session);
  const flags = image.writeFlags | zeroFlags(options) | (options.has('f') ? Req.fua : 0);
  start(
    session,
    timed(session, 'aio_write', () => image.backend.pwriteZeroes(offset, bytes, flags)).then((elapsedMs) => {
      if (!options.has('q'))
        report(session, 'wrote', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
    }),
  );
}

export async function aioFlush(session: IoSession): Promise<void> {
  while (session.pending.size > 0) await Promise.all(session.pending);
}

// ---- without data --------------------------------------------------------------------------------------------

export async function flush(session: IoSession): Promise<void> {
  try {
    await openImage(session).backend.flush();
  } catch {
    session.failed = true;
  }
}

export async function discard(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'discard', words, 'Cq');
  if (operands.length !== 2) throw new UsageProblem();
  const offset = size(session, operands[0]!);
  const bytes = length(session, operands[1]!);
  const image = openImage(session);
  const elapsedMs = await timed(session, 'discard', () => image.backend.pdiscard(offset, bytes));
  if (options.has('q')) return;
  report(session, 'discard', { offset, bytes, total: bytes, machine: options.has('C') }, elapsedMs);
}
