/**
 * The descriptor of a VMDK image: lines of text that name the parts of the disk, embedded in an extent or in a file of
 * its own. It comes with the image, so every word of it is checked; names in it are paths and nothing else.
 *
 * Source of the facts: VMware, "Virtual Disk Format 5.0"; descriptors made by VMware's products and qemu-img.
 */

import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';

export const NO_PARENT_CID = 0xffffffff;
/** Largest descriptor that is read: some hundred extents take a few KiB. */
export const MAX_DESCRIPTOR_BYTES = 1024 * 1024;
/** Largest disk: offsets must be exact. */
const MAX_SECTORS = 2 ** 53 / 512;
const MAX_EXTENTS = 4096;

export const EXTENT_TYPES = ['FLAT', 'VMFS', 'SPARSE', 'VMFSSPARSE', 'SESPARSE', 'ZERO'] as const;
export type ExtentType = (typeof EXTENT_TYPES)[number];

/** A line of the descriptor. */
export interface ExtentLine {
  readonly access: 'RW' | 'RDONLY';
  readonly sectors: number;
  readonly type: ExtentType;
  /** Empty for ZERO. */
  readonly filename: string;
  /** First sector in the file; FLAT only. */
  readonly offsetSectors: number;
}

export interface Descriptor {
  readonly text: string;
  readonly cid: number;
  readonly parentCid: number;
  readonly createType: string;
  readonly parentName: string | null;
}

const CREATE_TYPES: readonly string[] = [
  ...['monolithicFlat', 'vmfs', 'vmfsSparse', 'vmfsThin', 'seSparse'],
  ...['twoGbMaxExtentSparse', 'twoGbMaxExtentFlat', 'monolithicSparse', 'custom'],
];

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** The bytes up to the first zero, as text. */
export function descriptorText(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end);
}

/** The value of a `key="value"` or `key=value` line. */
function lineValue(text: string, key: string): string | null {
  const match = new RegExp(`^${key}[ \\t]*=[ \\t]*(?:"([^"\\r\\n]*)"|([^"\\r\\n]*))`, 'm').exec(text);
  return match === null ? null : (match[1] ?? match[2]!.trim());
}

function contentId(text: string, key: string): number {
  const value = lineValue(text, key);
  if (value === null || !/^[0-9a-f]{1,8}$/i.test(value)) throw ioError(E.EINVAL);
  return Number.parseInt(value, 16);
}

export function parseDescriptor(text: string): Descriptor {
  return {
    text,
    cid: contentId(text, 'CID'),
    parentCid: contentId(text, 'parentCID'),
    createType: lineValue(text, 'createType') ?? '',
    parentName: lineValue(text, 'parentFileNameHint'),
  };
}

/** Throws when the parts of such an image cannot be named by its descriptor. */
export function checkCreateType(createType: string): void {
  if (createType === '') throw invalid('invalid VMDK image descriptor');
  if (!CREATE_TYPES.includes(createType))
    throw new BlockError(`Unsupported image type '${createType}'`, { errno: E.ENOTSUP });
}

/** The extents in order. Lines that are no extents are skipped, wrong ones refused. */
export function parseExtents(text: string): readonly ExtentLine[] {
  const lines: ExtentLine[] = [];
  let total = 0;
  for (const line of text.split(/\r?\n/)) {
    const start = /^[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(\d{1,16})[ \t]+(\S+)(.*)$/.exec(line);
    if (start === null) continue;
    const [, access, digits, type, rest] = start;
    const sectors = Number(digits);
    const kind = EXTENT_TYPES.find((each) => each === type);
    const name = /^[ \t]+"([^"]*)"(?:[ \t]+(\d{1,16}))?(?:[ \t].*)?$/.exec(rest!);
    if (access === 'NOACCESS') throw invalid(`Extent that must not be accessed: ${line}`);
    const wellFormed =
      kind !== undefined &&
      sectors > 0 &&
      (kind === 'ZERO' || (name !== null && name[1] !== '')) &&
      (kind !== 'FLAT' || name?.[2] !== undefined) &&
      (kind === 'FLAT' || kind === 'VMFS' || name?.[2] === undefined) &&
      !(kind === 'VMFS' && Number(name?.[2] ?? 0) !== 0) &&
      !rest!.includes('\0');
    if (!wellFormed) throw invalid(`Invalid extent line: ${line}`);
    total += sectors;
    if (total > MAX_SECTORS) throw new BlockError('The disk is too large', { errno: E.EFBIG });
    if (lines.length === MAX_EXTENTS) throw invalid('Too many extents');
    lines.push({
      access: access as 'RW' | 'RDONLY',
      sectors,
      type: kind!,
      filename: kind === 'ZERO' ? '' : name![1]!,
      offsetSectors: Number(name?.[2] ?? 0),
    });
  }
  if (lines.length === 0) throw invalid('The descriptor names no extents');
  return lines;
}

/** The text with another content id, as long as it was. */
export function withContentId(text: string, cid: number): string {
  return text.replace(/^CID=[0-9a-fA-F]{1,8}/m, `CID=${hex8(cid)}`);
}

export function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}

export interface NewDescriptor {
  readonly cid: number;
  readonly parentCid: number;
  readonly createType: string;
  readonly parentName: string | null;
  readonly extentLines: readonly string[];
  readonly hwversion: string;
  readonly cylinders: number;
  readonly heads: number;
  readonly adapterType: string;
  readonly toolsversion: string;
}

export function newDescriptor(fields: NewDescriptor): string {
  return [
    '# Disk DescriptorFile',
    'version=1',
    `CID=${hex8(fields.cid)}`,
    `parentCID=${hex8(fields.parentCid)}`,
    `createType="${fields.createType}"`,
    fields.parentName === null ? '' : `parentFileNameHint="${fields.parentName}"`,
    '# Extent description',
    ...fields.extentLines,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    `ddb.virtualHWVersion = "${fields.hwversion}"`,
    `ddb.geometry.cylinders = "${fields.cylinders}"`,
    `ddb.geometry.heads = "${fields.heads}"`,
    'ddb.geometry.sectors = "63"',
    `ddb.adapterType = "${fields.adapterType}"`,
    `ddb.toolsVersion = "${fields.toolsversion}"`,
    '',
  ].join('\n');
}
