/** Making VHDX images. */

import { randomBytes } from 'node:crypto';
import type { BlockBackend } from '../../../block/backend.ts';
import { type CreateProgress, type ImageCreation, sizeOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { choice, createInFiles, createInNode, writeAt } from '../shared/creation.ts';
import {
  chunkRatio,
  encodeHeader,
  encodeRegions,
  Guid,
  HEADER_AT,
  invalid,
  MAX_BLOCK_BYTES,
  MAX_DISK_BYTES,
  METADATA_TABLE_BYTES,
  MIB,
  REGIONS_AT,
  State,
} from './layout.ts';
import { VHDX_SIGNATURE } from './probe.ts';

/** BlockdevCreateOptionsVhdx of the schema. */
interface VhdxCreateOptions {
  /** Name of a node, or options of one. */
  readonly file: unknown;
  readonly size: number;
  readonly 'log-size'?: number;
  readonly 'block-size'?: number;
  readonly subformat?: 'dynamic' | 'fixed';
  readonly 'block-state-zero'?: boolean;
}

const SECTOR_BYTES = 512;
const PHYSICAL_SECTOR_BYTES = 512;
/** From the metadata to the first block. */
const DATA_GAP_BYTES = 4 * MIB;
const GIB = 1024 * MIB;

interface Shape {
  readonly size: number;
  readonly logBytes: number;
  readonly blockBytes: number;
  readonly fixed: boolean;
  readonly zeroState: boolean;
}

/** Larger blocks for larger disks, as the original chooses them. */
function defaultBlockBytes(size: number): number {
  if (size > 32 * 1024 * GIB) return 64 * MIB;
  if (size > 100 * GIB) return 32 * MIB;
  return size > GIB ? 16 * MIB : 8 * MIB;
}

function shapeOf(options: VhdxCreateOptions): Shape {
  const { size } = options;
  const logBytes = options['log-size'] ?? MIB;
  const given = options['block-size'] ?? 0;
  const blockBytes = given === 0 ? defaultBlockBytes(size) : given;
  if (size > MAX_DISK_BYTES) throw invalid('Image size too large; max of 64TB');
  if (logBytes < MIB || logBytes % MIB !== 0) throw invalid('Log size must be a multiple of 1 MB');
  if (logBytes > 2 ** 32 - MIB) throw invalid('Log size must be smaller than 4 GB');
  if (blockBytes % MIB !== 0) throw invalid('Block size must be a multiple of 1 MB');
  if (!Number.isInteger(Math.log2(blockBytes))) throw invalid('Block size must be a power of two');
  if (blockBytes > MAX_BLOCK_BYTES) throw invalid('Block size must not exceed 256 MB');
  return {
    size,
    logBytes,
    blockBytes,
    fixed: options.subformat === 'fixed',
    zeroState: options['block-state-zero'] !== false,
  };
}

function createImage(layer: BlockLayer, options: VhdxCreateOptions, progress: CreateProgress): Promise<void> {
  let shape: Shape;
  return createInNode(
    layer,
    options.file,
    progress,
    () => {
      shape = shapeOf(options);
    },
    (file) => writeImage(file, shape),
  );
}

async function writeImage(file: BlockBackend, shape: Shape): Promise<void> {
  const { size, logBytes, blockBytes, fixed } = shape;
  const ratio = chunkRatio({ blockBytes, sectorBytes: SECTOR_BYTES });
  const blocks = Math.ceil(size / blockBytes);
  const entries = blocks + Math.floor(Math.max(0, blocks - 1) / ratio);
  const batBytes = Math.max(1, Math.ceil((entries * 8) / MIB)) * MIB;
  const bat = { offset: MIB + logBytes, bytes: batBytes };
  const metadata = { offset: bat.offset + batBytes, bytes: MIB };
  const dataAt = metadata.offset + MIB + DATA_GAP_BYTES;
  // What was there before is gone.
  await file.truncate(0, false, 'off').catch(() => undefined);
  await file.truncate(fixed ? dataAt + blocks * blockBytes : dataAt, false, 'off');
  await writeTable(file, shape, { at: bat.offset, entries, ratio, dataAt });
  await writeAt(file, metadata.offset, encodeMetadata(shape));
  for (const at of REGIONS_AT) await writeAt(file, at, encodeRegions({ bat, metadata }));
  const guids = { fileGuid: randomBytes(16), dataGuid: randomBytes(16), logGuid: Buffer.alloc(16) };
  for (const [slot, at] of HEADER_AT.entries()) {
    const sequence = BigInt(slot + 1);
    await writeAt(file, at, encodeHeader({ slot, sequence, ...guids, logBytes, logOffset: MIB }));
  }
  const id = Buffer.alloc(520);
  id.write(VHDX_SIGNATURE, 0, 'latin1');
  id.write('qblockd', 8, 'utf16le');
  await writeAt(file, 0, id);
}

/** Entries of a fixed image have places one after the other; bitmaps, which there are none of, take entries too. */
async function writeTable(
  file: BlockBackend,
  { blockBytes, fixed, zeroState }: Shape,
  table: { readonly at: number; readonly entries: number; readonly ratio: number; readonly dataAt: number },
): Promise<void> {
  if (!fixed && !zeroState) return;
  const perPiece = MIB / 8;
  for (let first = 0; first < table.entries; first += perPiece) {
    const count = Math.min(perPiece, table.entries - first);
    const piece = Buffer.alloc(count * 8);
    for (let i = 0; i < count; i++) {
      const chunk = Math.floor((first + i) / (table.ratio + 1));
      if ((first + i) % (table.ratio + 1) === table.ratio) continue;
      const host = table.dataAt + (first + i - chunk) * blockBytes;
      const entry = fixed ? (BigInt(host / MIB) << 20n) | BigInt(State.fullyPresent) : BigInt(State.zero);
      piece.writeBigUInt64LE(entry, i * 8);
    }
    await writeAt(file, table.at + first * 8, piece);
  }
}

function encodeMetadata({ size, blockBytes, fixed }: Shape): Buffer {
  const values: readonly (readonly [string, number, Buffer])[] = [
    [Guid.fileParameters, 4, u32s(blockBytes, fixed ? 1 : 0)],
    [Guid.diskSize, 6, u64(size)],
    [Guid.page83, 6, randomBytes(16)],
    [Guid.logicalSector, 6, u32s(SECTOR_BYTES)],
    [Guid.physicalSector, 6, u32s(PHYSICAL_SECTOR_BYTES)],
  ];
  const bytes = Buffer.alloc(METADATA_TABLE_BYTES + 4096);
  bytes.write('metadata', 0, 'latin1');
  bytes.writeUInt16LE(values.length, 10);
  let offset = METADATA_TABLE_BYTES;
  for (const [i, [id, flags, value]] of values.entries()) {
    const at = 32 + i * 32;
    bytes.write(id, at, 'hex');
    bytes.writeUInt32LE(offset, at + 16);
    bytes.writeUInt32LE(value.length, at + 20);
    bytes.writeUInt32LE(flags, at + 24);
    value.copy(bytes, offset);
    offset += value.length;
  }
  return bytes;
}

function u32s(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, i * 4);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

/** Sizes of the tools are rounded to what can be. */
function wholeMib(text: string | undefined, most: number): number | undefined {
  if (text === undefined || Number(text) === 0) return undefined;
  return Math.min(most, Math.ceil(Number(text) / MIB) * MIB);
}

export const creation: ImageCreation = {
  create: (layer, options, progress) => createImage(layer, options as unknown as VhdxCreateOptions, progress),
  options: [
    { name: 'size', type: 'size', help: 'Virtual disk size; max of 64TB.' },
    { name: 'log_size', type: 'size', help: 'Log size; min 1MB.', default: String(MIB) },
    {
      name: 'block_size',
      type: 'size',
      help: 'Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.',
      default: '0',
    },
    {
      name: 'subformat',
      type: 'string',
      help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
    },
    {
      name: 'block_state_zero',
      type: 'bool',
      help: "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
    },
  ],
  async createFile(layer, filename, values, progress) {
    await createInFiles(layer, [filename], values, progress, async ([file]) => {
      const { subformat } = values;
      const blockBytes = wholeMib(values.block_size, MAX_BLOCK_BYTES);
      const logBytes = wholeMib(values.log_size, 2 ** 32 - MIB);
      await createImage(
        layer,
        {
          file,
          size: sizeOption(values),
          ...(logBytes !== undefined && { 'log-size': logBytes }),
          ...(blockBytes !== undefined && { 'block-size': blockBytes }),
          ...(subformat !== undefined && { subformat: choice('subformat', subformat, ['dynamic', 'fixed']) }),
          'block-state-zero': values.block_state_zero !== 'off',
        },
        progress,
      );
    });
  },
};
