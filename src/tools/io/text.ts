/** Numbers as qblock-io prints them, and the report that follows a request. */

import { fixed } from '../../qmp/c-numbers.ts';
import type { IoSession } from './session.ts';

const UNITS: readonly (readonly [number, string])[] = [
  [2 ** 60, 'EiB'],
  [2 ** 50, 'PiB'],
  [2 ** 40, 'TiB'],
  [2 ** 30, 'GiB'],
  [2 ** 20, 'MiB'],
  [2 ** 10, 'KiB'],
];

/** "512 bytes", "64 KiB", "5.500 KiB". */
export function amount(bytes: number): string {
  for (const [unit, name] of UNITS) {
    if (bytes < unit) continue;
    return `${fixed(bytes / unit, 3).replace(/\.000$/, '')} ${name}`;
  }
  return `${fixed(bytes, 3).replace(/\.000$/, '')} bytes`;
}

function clock(seconds: number, long: boolean): string {
  const hundredths = String(Math.floor((seconds % 1) * 100)).padStart(2, '0');
  const whole = Math.floor(seconds);
  const two = (value: number): string => String(value).padStart(2, '0');
  if (!long && whole < 60) return `${two(whole)}.${hundredths} sec`;
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${hundredths}`;
}

/** Prints what a request did: two lines, or one for machines. */
export function report(
  { env }: IoSession,
  verb: string,
  { offset, bytes, total, machine }: { offset: number; bytes: number; total: number; machine: boolean },
  elapsedMs: number,
): void {
  const seconds = Math.max(elapsedMs, 0.001) / 1000;
  const bytesPerSecond = bytes / seconds;
  const operations = 1 / seconds;
  if (machine) {
    const figures = `${fixed(bytesPerSecond, 3)},${fixed(operations, 3)}`;
    env.output.print(`${bytes},1,${clock(seconds, true)},${figures}\n`);
    return;
  }
  env.output.print(`${verb} ${bytes}/${total} bytes at offset ${offset}\n`);
  env.output.print(
    `${amount(bytes)}, 1 ops; ${clock(seconds, false)} (${amount(bytesPerSecond)}/sec and ${fixed(operations, 4)} ops/sec)\n`,
  );
}

/** Prints a buffer, 16 bytes a line: in hexadecimal, then its letters and digits. */
export function dump({ env }: IoSession, buf: Buffer, offset: number): void {
  for (let at = 0; at < buf.length; at += 16) {
    const row = buf.subarray(at, at + 16);
    const hex = [...row].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const letters = [...row]
      .map((byte) => String.fromCharCode(byte))
      .join('')
      .replace(/[^0-9A-Za-z]/g, '.');
    env.output.print(`${(offset + at).toString(16).padStart(8, '0')}:  ${hex}  ${letters}\n`);
  }
}
