/** `measure`: how large the file of an image will be. */

import type { ImageInfo } from '../../../schema/generated/types.ts';
import type { MeasureSource } from '../../block/contract/image.ts';
import { Status } from '../../block/contract/request.ts';
import { creationOptions } from '../../block/open/new-image-text.ts';
import { imageInfo } from '../../block/query/query.ts';
import { BlockError } from '../../errors/error.ts';
import { printJsonPretty } from '../../qmp/json-print.ts';
import { openNamedImage, type ToolImage } from '../common/environment.ts';
import {
  type CommandContext,
  checkFormatGiven,
  EarlyExit,
  joinOptions,
  type OutputFormat,
  outputFormat,
  readOptions,
  readSize,
} from './common/command.ts';
import { findFormat, parseValues, type Values } from './common/creation.ts';
import { loadSnapshot, parseSnapshotParam, type SnapshotParam } from './common/snapshot-param.ts';
import { MEASURE } from './tables/making.ts';

export async function measure(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let outFormat = 'raw';
  let options: string | null = null;
  let snapshot: SnapshotParam | null = null;
  let form = 'human' as OutputFormat;
  let size: number | null = null;
  let imageOpts = false;
  let forceShare = false;
  const { output } = context;
  const operands = await readOptions(context, MEASURE, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'outFormat') outFormat = value;
    else if (name === 'options') options = joinOptions(options, value);
    else if (name === 'snapshot') snapshot = parseSnapshotParam(output, value);
    else if (name === 'output') form = outputFormat(value);
    else if (name === 'size' || name === 'sizeNew') size = readSize(output, 'image size', value);
    else if (name === 'imageOpts') imageOpts = true;
    else forceShare = true;
  });
  if (operands.length > 1) throw new BlockError('At most one filename argument is allowed.');
  const [name] = operands;
  if (name === undefined && (imageOpts || format !== null || snapshot !== null))
    throw new BlockError('--image-opts, -f, and -l require a filename argument.');
  if (name === undefined && size === null)
    throw new BlockError('Either --size N or one filename must be specified.');
  if (name !== undefined && size !== null)
    throw new BlockError('--size N cannot be used together with a filename.');
  checkFormatGiven(imageOpts, format);
  const env = context.environment();
  const image =
    name === undefined ? null : await openNamedImage(env, { name, format, imageOpts, forceShare });
  if (image !== null && snapshot !== null) await loadSnapshot(image, snapshot);
  const driver = await findFormat(env.layer, outFormat);
  const values = await readValues(context, outFormat, options);
  if (driver.measure === undefined)
    throw new BlockError(`Block driver '${outFormat}' does not support size measurement`);
  const source = image === null ? emptySource(size ?? 0) : await imageSource(image);
  const result = await driver.measure(Object.fromEntries(values), source);
  const { required, fullyAllocated, bitmaps } = result;
  if (form === 'json') {
    const record = { required, 'fully-allocated': fullyAllocated, ...(bitmaps !== undefined && { bitmaps }) };
    output.print(`${printJsonPretty(record).replaceAll('\r\n', '\n')}\n`);
    return 0;
  }
  output.print(`required size: ${BigInt(required)}\nfully allocated size: ${BigInt(fullyAllocated)}\n`);
  if (bitmaps !== undefined) output.print(`bitmaps size: ${bitmaps}\n`);
  return 0;
}

async function readValues(context: CommandContext, format: string, options: string | null): Promise<Values> {
  const { layer } = context.environment();
  const known = creationOptions(await findFormat(layer, format), (await layer.driver('file')) ?? null);
  try {
    return parseValues(known, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    context.output.error(error);
    context.output.error(`Invalid options for file format '${format}'`);
    throw new EarlyExit(1);
  }
}

function emptySource(bytes: number): MeasureSource {
  return {
    bytes,
    // biome-ignore lint/correctness/useYield: there is nothing in it
    async *extents() {
      return;
    },
  };
}

/** Of the bitmaps an image keeps; null when it is of no kind that keeps any. */
function bitmapGranularities(info: ImageInfo): readonly number[] | null {
  const specific = info['format-specific'];
  if (specific?.type !== 'qcow2' || specific.data.compat === '0.10') return null;
  return (specific.data.bitmaps ?? []).map(({ granularity }) => granularity);
}

/** The content of an image as its backing chain shows it. */
async function imageSource({ node, backend }: ToolImage): Promise<MeasureSource> {
  const granularities = bitmapGranularities(await imageInfo(node));
  return {
    bytes: node.totalBytes,
    ...(granularities !== null && { bitmapGranularities: granularities }),
    async *extents() {
      for (let at = 0; at < node.totalBytes; ) {
        const { bytes, flags } = await backend.chainStatus(at, node.totalBytes - at, null);
        yield {
          bytes,
          zero: (flags & Status.zero) !== 0,
          allocated: (flags & Status.allocated) !== 0 && (flags & Status.data) !== 0,
        };
        at += bytes;
      }
    },
  };
}
