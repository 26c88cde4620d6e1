/** LUKS volumes as byte arrays for the tests, made and read by QEMU. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { limitMs } from '../patience.ts';

export const PASSPHRASE = 'hunter2';
export const SECRETS = { s: PASSPHRASE, n: 'new passphrase', w: 'wrong' } as const;

export interface Outcome {
  readonly status: number;
  /** First line of the error output, without the program's and the file's name. */
  readonly error: string;
}

const secretArgs = Object.entries(SECRETS).flatMap(([id, data]) => [
  ...['--object', `secret,id=${id},data=${data}`],
]);

/** Runs one of QEMU's tools, with the secrets as objects. */
export function qemu(program: string, args: readonly string[], file: string): Outcome & { stdout: string } {
  // The original measures CPU time too coarsely for fast hashes, and then gives up at random.
  for (let attempt = 1; ; attempt++) {
    const [command = '', ...rest] = args;
    const { status, stdout, stderr } = spawnSync(program, [command, ...secretArgs, ...rest], {
      encoding: 'utf8',
      timeout: limitMs(60_000),
    });
    if (stderr.includes('Unable to get accurate CPU usage') && attempt < 100) continue;
    const [line = ''] = stderr.split('\n');
    const prefixes = [`${program}: `, `Could not open '${file}': `, `${file}: `];
    const error = prefixes.reduce(
      (text, prefix) => (text.startsWith(prefix) ? text.slice(prefix.length) : text),
      line,
    );
    return { status: status ?? -1, error, stdout };
  }
}

/** A volume made by qemu-img, with `content` in it. Throws the original's message when it refuses. */
export function qemuVolume(dir: string, options: string, content: Buffer): Buffer {
  const file = path.join(dir, 'theirs.luks');
  const raw = path.join(dir, 'theirs.raw');
  rmSync(file, { force: true });
  const extra = options === '' ? '' : `,${options}`;
  const made = qemu(
    'qemu-img',
    ['create', '-q', '-f', 'luks', '-o', `key-secret=s,iter-time=0${extra}`, file, String(content.length)],
    file,
  );
  if (made.status !== 0 || !existsSync(file)) throw new Error(made.error);
  writeFileSync(raw, content);
  const target = `driver=luks,file.filename=${file},key-secret=s`;
  const filled = qemu('qemu-img', ['convert', '-n', '--target-image-opts', '-f', 'raw', raw, target], file);
  if (filled.status !== 0) throw new Error(filled.error);
  return readFileSync(file);
}

/** What QEMU reads out of `volume` with secret `secretId`; its message when it cannot. */
export function qemuReads(dir: string, volume: Buffer, secretId: keyof typeof SECRETS): Buffer | string {
  const file = path.join(dir, 'ours.luks');
  const raw = path.join(dir, 'ours.raw');
  writeFileSync(file, volume);
  const source = `driver=luks,file.filename=${file},key-secret=${secretId}`;
  const { status, error } = qemu('qemu-img', ['convert', '--image-opts', '-O', 'raw', source, raw], file);
  return status === 0 ? readFileSync(raw) : error.replace(/^Could not open '[^']*': /, '');
}

/** `data` of format-specific information; the message when QEMU refuses the volume. */
export function qemuInfo(dir: string, volume: Buffer): unknown {
  const file = path.join(dir, 'info.luks');
  writeFileSync(file, volume);
  const { status, error, stdout } = qemu('qemu-img', ['info', '--output=json', '-f', 'luks', file], file);
  if (status !== 0) return error;
  return (JSON.parse(stdout) as { 'format-specific': { data: unknown } })['format-specific'].data;
}

/** Reads out of a byte array; zeroes after its end, as the raw file would. */
export function readerOf(volume: Buffer): (offset: number, bytes: number) => Promise<Buffer> {
  return async (offset, bytes) => {
    const data = Buffer.alloc(bytes);
    volume.copy(data, 0, offset, offset + bytes);
    return data;
  };
}
