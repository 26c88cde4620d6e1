/**
 * Entries of folders: short names, long names in the entries in front of them, times; both ways.
 *
 * Source of the facts: Microsoft's FAT32 File System Specification 1.03, "Long Directory Entries".
 */

import { ENTRY_BYTES, paddedLabel } from './layout.ts';

export const Attribute = { label: 8, folder: 16, archive: 32, longName: 15 } as const;
/** Places of the characters of a long name in an entry. */
const LONG_PLACES = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30] as const;
const LAST_LONG = 0x40;
const DELETED = 0xe5;
const MAX_NAME_CHARACTERS = 255;

function checksum(short: Buffer): number {
  let sum = 0;
  for (const byte of short) sum = (((sum & 1) << 7) + (sum >> 1) + byte) & 255;
  return sum;
}

/** A short name that no other in the folder has: eleven bytes. */
export function shortName(name: string, taken: Set<string>): Buffer {
  const clean = (text: string): string =>
    text
      .toUpperCase()
      .replace(/[^A-Z0-9!#$%&'()@^_`{}~-]/g, (character) => (/[. ]/.test(character) ? '' : '_'));
  const dot = name.lastIndexOf('.');
  const base = clean(dot > 0 ? name.slice(0, dot) : name);
  const extension = clean(dot > 0 ? name.slice(dot + 1) : '').slice(0, 3);
  for (let i = 0; ; i++) {
    const tail = i === 0 ? '' : `~${i}`;
    const start = base.slice(0, 8 - tail.length) + tail;
    const short = (start === '' ? '_' : start).padEnd(8) + extension.padEnd(3);
    if (taken.has(short)) continue;
    taken.add(short);
    return Buffer.from(short, 'latin1');
  }
}

function fatTime(mtimeMs: number): { readonly date: number; readonly time: number } {
  const at = new Date(mtimeMs);
  const year = Math.min(Math.max(at.getFullYear(), 1980), 2107);
  return {
    date: ((year - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate(),
    time: (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1),
  };
}

export interface NewEntry {
  readonly short: Buffer;
  readonly attributes: number;
  readonly mtimeMs: number;
  readonly cluster: number;
  readonly bytes: number;
}

export function shortEntry({ short, attributes, mtimeMs, cluster, bytes }: NewEntry): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES);
  short.copy(entry);
  const { date, time } = fatTime(mtimeMs);
  entry[11] = attributes;
  entry.writeUInt16LE(time, 14);
  entry.writeUInt16LE(date, 16);
  entry.writeUInt16LE(date, 18);
  entry.writeUInt16LE(cluster >>> 16, 20);
  entry.writeUInt16LE(time, 22);
  entry.writeUInt16LE(date, 24);
  entry.writeUInt16LE(cluster & 0xffff, 26);
  entry.writeUInt32LE(bytes, 28);
  return entry;
}

export function labelEntry(label: string, mtimeMs: number): Buffer {
  return shortEntry({
    short: paddedLabel(label),
    attributes: Attribute.label,
    mtimeMs,
    cluster: 0,
    bytes: 0,
  });
}

/** Whether a name can be in a folder at all. */
export function isPossibleName(name: string): boolean {
  if (name.length > MAX_NAME_CHARACTERS || name === '.' || name === '..') return false;
  return !/[\\/:*?"<>|]/.test(name) && ![...name].some((character) => character < ' ');
}

/** The entries in front of a short one that hold the long name. */
export function longEntries(name: string, short: Buffer): Buffer {
  const parts = Math.ceil(name.length / LONG_PLACES.length);
  const bytes = Buffer.alloc(parts * ENTRY_BYTES);
  for (let part = 1; part <= parts; part++) {
    const at = (parts - part) * ENTRY_BYTES;
    bytes[at] = part | (part === parts ? LAST_LONG : 0);
    bytes[at + 11] = Attribute.longName;
    bytes[at + 13] = checksum(short);
    LONG_PLACES.forEach((place, i) => {
      const index = (part - 1) * LONG_PLACES.length + i;
      const code = index < name.length ? name.charCodeAt(index) : index === name.length ? 0 : 0xffff;
      bytes.writeUInt16LE(code, at + place);
    });
  }
  return bytes;
}

export interface ReadEntry {
  readonly name: string;
  readonly isFolder: boolean;
  readonly cluster: number;
  readonly bytes: number;
}

/** The entries of a folder, without label, "." and "..". Throws for what cannot be a name. */
export function readEntries(folder: Buffer): ReadEntry[] {
  const entries: ReadEntry[] = [];
  let long: { readonly sum: number; readonly parts: string[]; next: number } | null = null;
  for (let at = 0; at + ENTRY_BYTES <= folder.length; at += ENTRY_BYTES) {
    const first = folder[at]!;
    if (first === 0) break;
    if (first === DELETED) {
      long = null;
      continue;
    }
    const attributes = folder[at + 11]!;
    if ((attributes & 63) === Attribute.longName) {
      const part: number = first & 63;
      if ((first & LAST_LONG) !== 0) long = { sum: folder[at + 13]!, parts: [], next: part };
      if (long === null || long.next !== part || folder[at + 13] !== long.sum) {
        long = null;
        continue;
      }
      long.parts.unshift(longPart(folder, at));
      long.next = part - 1;
      continue;
    }
    const short = folder.subarray(at, at + 11);
    const whole: boolean = long !== null && long.next === 0 && long.sum === checksum(short);
    const name: string = whole
      ? long!.parts.join('').replace(/\0.*$/s, '')
      : nameOfShort(short, folder[at + 12]!);
    long = null;
    if ((attributes & Attribute.label) !== 0 || name === '.' || name === '..') continue;
    if (name === '' || !isPossibleName(name))
      throw new Error(`a name that cannot be: ${JSON.stringify(name)}`);
    entries.push({
      name,
      isFolder: (attributes & Attribute.folder) !== 0,
      cluster: folder.readUInt16LE(at + 20) * 65536 + folder.readUInt16LE(at + 26),
      bytes: folder.readUInt32LE(at + 28),
    });
  }
  return entries;
}

function longPart(folder: Buffer, at: number): string {
  return String.fromCharCode(...LONG_PLACES.map((place) => folder.readUInt16LE(at + place))).replace(
    /\uffff+$/,
    '',
  );
}

/** Windows keeps the case of short names in two bits. */
function nameOfShort(short: Buffer, flags: number): string {
  let base = short.toString('latin1', 0, 8).trimEnd();
  let extension = short.toString('latin1', 8, 11).trimEnd();
  if (base.charCodeAt(0) === 5) base = `\xe5${base.slice(1)}`;
  if ((flags & 8) !== 0) base = base.toLowerCase();
  if ((flags & 16) !== 0) extension = extension.toLowerCase();
  return extension === '' ? base : `${base}.${extension}`;
}
