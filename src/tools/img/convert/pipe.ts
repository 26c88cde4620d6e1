/**
 * `convert` from a pipe and into one: "-" is standard input or output, and a FIFO is a pipe by its name. What comes in is
 * raw, or raw compressed by gzip, xz or zstd; what goes out is raw. Nothing is kept aside: an image whose length is not
 * known yet grows with what comes.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, createReadStream, fstatSync, open, statSync, write } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { allocateIoMemory, isZero, vectorOf } from '../../../aio/memory.ts';
import { Req, Status } from '../../../block/contract/request.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../../../errors/error.ts';
import { openNamedImage, type ToolEnvironment, type ToolImage } from '../../common/environment.ts';
import type { Progress } from '../../common/progress.ts';
import { findFormat } from '../common/creation.ts';
import { createPace } from '../common/pace.ts';
import { openTarget, type TargetRequest } from './target.ts';

const PIECE_BYTES = 2 * 1024 * 1024;
const SECTOR_BYTES = 512;
const RETRY_MS = 1;

export interface PipeSource {
  readonly name: string;
  readonly format: string | null;
  readonly imageOpts: boolean;
  readonly rate: number;
  /** Zeroes of this length in what comes are left out; 0: none are. */
  readonly leastZeroBytes: number;
}

/** Whether the operand is a pipe; a file called "-" is "./-". */
export function isPipe(name: string): boolean {
  if (name === '-') return true;
  try {
    return statSync(name).isFIFO();
  } catch {
    return false;
  }
}

// ---- in ----------------------------------------------------------------------------------------------------------

/** Copies a pipe into a new image, or one that exists. */
export async function convertFromPipe(
  env: ToolEnvironment,
  source: PipeSource,
  target: TargetRequest,
  progress: Progress,
): Promise<void> {
  if (source.imageOpts || source.format === null)
    throw new BlockError("What comes through a pipe is raw: say so with '-f raw'");
  if (source.format !== 'raw')
    throw new BlockError(
      `Only raw images can come through a pipe, no ${source.format}: it is not read from front to back. --spool FOLDER keeps it there meanwhile`,
    );
  const known = source.name === '-' ? lengthOfStdin() : null;
  if (known === null) await checkGrows(env, target);
  const chunks = unpacked(source.name);
  const { image, isZero: fresh, compressBytes } = await openTarget(env, { ...target, bytes: known ?? 0 }, []);
  const { backend, node } = image;
  const unit = compressBytes ?? PIECE_BYTES;
  const pieceBytes = unit >= PIECE_BYTES ? unit : PIECE_BYTES - (PIECE_BYTES % unit);
  const memory = allocateIoMemory(pieceBytes);
  const pace = createPace(source.rate);
  progress.begin('copy', known ?? 0);
  let filled = 0;
  let written = 0;
  const write = async (bytes: number): Promise<void> => {
    const whole = Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
    memory.buf.fill(0, bytes, whole);
    if (written + whole > node.totalBytes) {
      if (target.skipCreate) throw new BlockError('output file is smaller than input file');
      await backend.truncate(written + whole, true, 'off');
    }
    await pace.wait(whole);
    await writePiece(image, memory.buf, written, whole, compressBytes, fresh, source.leastZeroBytes);
    written += whole;
    if (known !== null && known > 0) progress.set((written / known) * 100);
  };
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length; ) {
      const length = Math.min(chunk.length - at, pieceBytes - filled);
      chunk.copy(memory.buf, filled, at, at + length);
      filled += length;
      at += length;
      if (filled < pieceBytes) continue;
      await write(filled);
      filled = 0;
    }
  }
  if (filled > 0) await write(filled);
  // The input was shorter than it said.
  if (!target.skipCreate && node.totalBytes !== written) await backend.truncate(written, true, 'off');
  if (compressBytes !== null) await backend.pwritevCompressed(0, 0, { segments: [], bytes: 0 });
  progress.set(100);
  await image.close();
}

function lengthOfStdin(): number | null {
  const stat = fstatSync(0);
  return stat.isFile() ? Math.ceil(stat.size / SECTOR_BYTES) * SECTOR_BYTES : null;
}

/** Whether images of the target's format can become longer as more comes. */
async function checkGrows(
  env: ToolEnvironment,
  { format, imageOpts, skipCreate }: TargetRequest,
): Promise<void> {
  if (skipCreate || imageOpts) return;
  const driver = await findFormat(env.layer, format ?? 'raw');
  if (driver.truncate !== undefined) return;
  throw new BlockError(
    `Images of format ${driver.name} cannot grow, and the length of what comes is not known: redirect a file instead of a pipe, or name a folder to keep it in with --spool FOLDER`,
    { errno: E.ENOTSUP },
  );
}

async function writePiece(
  { backend, writeFlags }: ToolImage,
  buf: Buffer,
  at: number,
  bytes: number,
  compressBytes: number | null,
  fresh: boolean,
  leastZeroBytes: number,
): Promise<void> {
  const unit = compressBytes ?? (leastZeroBytes > 0 ? Math.max(leastZeroBytes, 4096) : bytes);
  for (let from = 0; from < bytes; ) {
    let to = Math.min(from + unit, bytes);
    const zero = (compressBytes !== null || leastZeroBytes > 0) && isZero(buf.subarray(from, to));
    // Runs of the same kind go together, but compressed clusters one by one.
    while (compressBytes === null && to < bytes) {
      const next = Math.min(to + unit, bytes);
      if ((leastZeroBytes > 0 && isZero(buf.subarray(to, next))) !== zero) break;
      to = next;
    }
    if (!zero || (!fresh && compressBytes !== null)) {
      const piece = allocateIoMemory(to - from);
      buf.copy(piece.buf, 0, from, to);
      const vector = vectorOf(piece);
      if (compressBytes !== null) await backend.pwritevCompressed(at + from, to - from, vector);
      else await backend.pwritev(at + from, to - from, vector, writeFlags);
    } else if (!fresh) await backend.pwriteZeroes(at + from, to - from, writeFlags | Req.mayUnmap);
    from = to;
  }
}

/** What comes through the pipe, as it is. */
export function received(name: string): Readable {
  return name === '-' ? process.stdin : createReadStream(name);
}

/** What comes, unpacked if its first bytes say that it is compressed. */
export async function* unpacked(name: string): AsyncGenerator<Buffer> {
  const input = received(name);
  const iterator = input[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let start = Buffer.alloc(0);
  let ended = false;
  while (start.length < 6 && !ended) {
    const next = await iterator.next();
    if (next.done === true) ended = true;
    else start = Buffer.concat([start, next.value]);
  }
  const program = programFor(start);
  async function* all(): AsyncGenerator<Buffer> {
    if (start.length > 0) yield start;
    for (
      let next = ended ? null : await iterator.next();
      next !== null && next.done !== true;
      next = await iterator.next()
    )
      yield next.value;
  }
  if (program === null) yield* all();
  else yield* through(all(), program);
}

function programFor(start: Buffer): 'gzip' | 'xz' | 'zstd' | null {
  if (start[0] === 0x1f && start[1] === 0x8b && start[2] === 0x08) return 'gzip';
  if (start.subarray(0, 6).equals(Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]))) return 'xz';
  return start.subarray(0, 4).equals(Buffer.from([0x28, 0xb5, 0x2f, 0xfd])) ? 'zstd' : null;
}

async function* through(
  input: AsyncIterable<Buffer>,
  program: 'gzip' | 'xz' | 'zstd',
): AsyncGenerator<Buffer> {
  const { Readable: Stream } = await import('node:stream');
  const { pipeline } = await import('node:stream/promises');
  let child: ChildProcess | null = null;
  let told = '';
  let output: Readable;
  let fed: Promise<unknown>;
  if (program === 'gzip') {
    const gunzip = createGunzip({ chunkSize: 256 * 1024 });
    output = gunzip;
    fed = pipeline(Stream.from(input), gunzip);
  } else {
    child = spawn(program, ['-dc'], { stdio: ['pipe', 'pipe', 'pipe'] });
    child.stderr!.on('data', (text) => {
      if (told.length < 1000) told += String(text);
    });
    output = child.stdout!;
    fed = pipeline(Stream.from(input), child.stdin!);
  }
  const exited = new Promise<number | null>((resolve) => {
    if (child === null) return resolve(0);
    child.on('error', () => resolve(127));
    child.on('close', (status) => resolve(status));
  });
  fed.catch(() => undefined); // told by what comes out, or the status
  try {
    for await (const chunk of output) yield chunk as Buffer;
  } catch (error) {
    throw new BlockError(`What comes cannot be unpacked: ${(error as Error).message}`, { errno: E.EIO });
  }
  const status = await exited;
  if (status === 127)
    throw new BlockError(`What comes cannot be unpacked: the program '${program}' is not there`);
  if (status !== 0)
    throw new BlockError(`What comes cannot be unpacked: ${told.trim() || `status ${status}`}`);
}

// ---- out ---------------------------------------------------------------------------------------------------------

/** Writes the content of an image into a pipe, from front to back. */
export async function convertToPipe(
  env: ToolEnvironment,
  source: PipeSource,
  target: TargetRequest,
  progress: Progress,
): Promise<void> {
  if ((target.format ?? 'raw') !== 'raw' || target.compress || target.imageOpts)
    throw new BlockError(
      'Only raw can be written into a pipe: other formats go back to what they have written. --spool FOLDER keeps the image there meanwhile',
    );
  const { name, format, imageOpts } = source;
  const image = await openNamedImage(env, { name, format, imageOpts });
  const { backend, node } = image;
  const fd = target.name === '-' ? 1 : await openPipe(target.name);
  const memory = allocateIoMemory(PIECE_BYTES);
  const pace = createPace(source.rate);
  const total = node.totalBytes;
  progress.begin('copy', total);
  for (let at = 0; at < total; ) {
    const bytes = Math.min(PIECE_BYTES, total - at);
    const { flags, bytes: same } = await backend.chainStatus(at, bytes, null);
    const isHole = (flags & Status.zero) !== 0 && same === bytes;
    if (isHole) memory.buf.fill(0, 0, bytes);
    else await backend.preadv(at, bytes, vectorOf(memory, 0, bytes), 0);
    await pace.wait(bytes);
    await writeAll(fd, memory.buf.subarray(0, bytes), target.name);
    at += bytes;
    progress.set((at / total) * 100);
  }
  await image.close();
}

/** Sends what comes into a pipe. */
export async function sendAll(name: string, chunks: () => AsyncIterable<Buffer>): Promise<void> {
  const fd = name === '-' ? 1 : await openPipe(name);
  for await (const chunk of chunks()) await writeAll(fd, chunk, name);
  if (fd !== 1) closeSync(fd);
}

/** Opens a FIFO when somebody reads it. Another thread waits, so that signals are heard meanwhile; as in writeAll. */
function openPipe(name: string): Promise<number> {
  return new Promise((resolve, reject) => {
    open(name, 'w', (error, fd) => {
      if (error === null) resolve(fd);
      else reject(errnoError(`Could not open '${name}'`, errnoOf(error)));
    });
  });
}

/** Waits for whoever reads, also where the pipe does not block. */
async function writeAll(fd: number, bytes: Buffer, name: string): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += await writeSome(fd, bytes.subarray(done));
    } catch (error) {
      if (errnoOf(error) !== E.EAGAIN) throw errnoError(`error while writing to '${name}'`, errnoOf(error));
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function writeSome(fd: number, bytes: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    write(fd, bytes, (error, length) => (error === null ? resolve(length) : reject(error)));
  });
}
