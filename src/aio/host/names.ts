/**
 * Names of the host as text: files, folders, arguments of the command line, strings inside of images.
 *
 * To the host a name is bytes; nearly always they are UTF-8, and text then. A byte that is not part of valid UTF-8
 * becomes a lone surrogate, U+DC80 to U+DCFF, which no valid text contains: so every name can be kept, compared and
 * joined as text, and gives its own bytes again. The other way round NUL, which no name of the host can have, is the
 * pair of bytes C0 80, as in the strings of QMP.
 * Not here: opening (files.ts), and names of images with their prefixes (src/block/open).
 */

import { isUtf8 } from 'node:buffer';
import { readFileSync, readlinkSync } from 'node:fs';

/** Where the bytes that are not UTF-8 lie among the surrogates. */
const ESCAPE_BASE = 0xdc00;
/** Bytes of a path that Linux takes. */
const PATH_MAX = 4096;
const NEEDS_BYTES = /[\0\ud800-\udfff]/;

/** Bytes from `at` that are one character of UTF-8; 0 when there is none. */
function characterBytes(bytes: Uint8Array, at: number): number {
  const lead = bytes[at]!;
  const wanted = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  return wanted > 0 && at + wanted <= bytes.length && isUtf8(bytes.subarray(at, at + wanted)) ? wanted : 0;
}

/** The bytes as text; bytesOfText gives them back. */
export function textOfBytes(bytes: Uint8Array): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (isUtf8(buffer)) return buffer.toString('utf8');
  let text = '';
  for (let at = 0; at < buffer.length; ) {
    const length = characterBytes(buffer, at);
    text +=
      length === 0
        ? String.fromCharCode(ESCAPE_BASE + buffer[at]!)
        : buffer.toString('utf8', at, at + length);
    at += length || 1;
  }
  return text;
}

/** The bytes of a text, those included that are not UTF-8. */
export function bytesOfText(text: string): Buffer {
  if (text.isWellFormed()) return Buffer.from(text, 'utf8');
  const parts: Buffer[] = [];
  for (const character of text) {
    const code = character.charCodeAt(0);
    const isByte = character.length === 1 && code >= ESCAPE_BASE + 0x80 && code <= ESCAPE_BASE + 0xff;
    parts.push(isByte ? Buffer.from([code - ESCAPE_BASE]) : Buffer.from(character, 'utf8'));
  }
  return Buffer.concat(parts);
}

/** Bytes of a text in UTF-8, as bytesOfText makes them. */
export function byteLength(text: string): number {
  return text.isWellFormed() ? Buffer.byteLength(text) : bytesOfText(text).length;
}

/** The name as the functions of node:fs take it. */
export function hostPath(name: string): string | Buffer {
  // Longer than the kernel takes: it says so of the beginning too, and sooner.
  if (name.length > 2 * PATH_MAX) return name.slice(0, 2 * PATH_MAX);
  if (!NEEDS_BYTES.test(name)) return name;
  const bytes = bytesOfText(name);
  return bytes.includes(0)
    ? Buffer.from(bytes.toString('latin1').replaceAll('\0', '\xc0\x80'), 'latin1')
    : bytes;
}

/** `name` from the root, whatever the folder of the process is called. Unlike path.resolve it keeps "." and "..". */
export function absoluteName(name: string): string {
  if (name.startsWith('/')) return name;
  const here = textOfBytes(readlinkSync('/proc/self/cwd', { encoding: 'buffer' }));
  return `${here === '/' ? '' : here}/${name}`;
}

/** The last words of the command line as they were written. Node has lost what is not UTF-8: the kernel has it. */
export function restoreWords(words: readonly string[]): readonly string[] {
  if (!words.some((word) => word.includes('\ufffd'))) return words;
  const all = readFileSync('/proc/self/cmdline');
  const kept: string[] = [];
  for (let start = 0; start < all.length; ) {
    const end = all.indexOf(0, start);
    kept.push(textOfBytes(all.subarray(start, end)));
    start = end + 1;
  }
  return kept.length >= words.length ? kept.slice(kept.length - words.length) : words;
}
