/** `map`: which file holds which part of an image, and where. */

import { Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { exactBlockStatus } from '../../block/io/status.ts';
import { backingOf, layerStatus } from '../../block/io/status-chain.ts';
import { exactFilename, nodeFilename } from '../../block/open/filename.ts';
import { BlockError, errnoError, errnoOf } from '../../errors/error.ts';
import { openNamedImage } from '../common/environment.ts';
import {
  type CommandContext,
  checkFormatGiven,
  type OutputFormat,
  outputFormat,
  readOptions,
  readSize,
  UsageError,
} from './common/command.ts';
import { MAP } from './tables/keeping.ts';

/** A stretch of the image that one line tells about. */
interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly data: boolean;
  readonly zero: boolean;
  readonly present: boolean;
  readonly compressed: boolean;
  readonly depth: number;
  /** Where it is in `filename`; null: nowhere to be found. */
  readonly offset: number | null;
  readonly filename: string | null;
}

export async function map(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let output: string | null = null;
  let start: number | null = null;
  let maxLength: number | null = null;
  let imageOpts = false;
  let forceShare = false;
  let tellCompressed = false;
  const operands = await readOptions(context, MAP, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'output') output = value;
    else if (name === 'imageOpts') imageOpts = true;
    else if (name === 'forceShare') forceShare = true;
    else if (name === 'compressed') tellCompressed = true;
    else if (name === 'start') start = readSize(context.output, 'start offset', value);
    else maxLength = readSize(context.output, 'max length', value);
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  const form: OutputFormat = output === null ? 'human' : outputFormat(output);
  checkFormatGiven(imageOpts, format);
  const image = await openNamedImage(context.environment(), { name, format, imageOpts, forceShare });
  const from = start ?? 0;
  const total = image.node.totalBytes;
  const end = maxLength === null ? total : Math.min(from + maxLength, total);
  await new MapPrinter(context, form, tellCompressed).run(image.node, from, end);
  return 0;
}

class MapPrinter {
  readonly #context: CommandContext;
  readonly #form: OutputFormat;
  readonly #tellCompressed: boolean;

  constructor(context: CommandContext, form: OutputFormat, tellCompressed: boolean) {
    this.#context = context;
    this.#form = form;
    this.#tellCompressed = tellCompressed;
  }

  async run(node: BlockNode, from: number, end: number): Promise<void> {
    const { output } = this.#context;
    if (this.#form === 'human')
      output.print(`${'Offset'.padEnd(16)}${'Length'.padEnd(16)}${'Mapped to'.padEnd(16)}File\n`);
    else output.print('[');
    let current: MapEntry = { ...NOTHING, start: from };
    let at = from;
    while (at < end) {
      const entry = await entryAt(node, at, end - at);
      const isSame = !this.#tellCompressed || current.compressed === entry.compressed;
      if (isSame && continues(current, entry)) {
        current = { ...current, length: current.length + entry.length };
      } else {
        if (current.length > 0) this.#print(current, true);
        current = entry;
      }
      at = entry.start + entry.length;
    }
    this.#print(current, false);
    if (this.#form === 'json') output.print(']\n');
  }

  #print(entry: MapEntry, more: boolean): void {
    const { output } = this.#context;
    if (this.#form === 'json') {
      const { start, length, depth, present, zero, data, offset } = entry;
      const packed = this.#tellCompressed ? `, "compressed": ${entry.compressed}` : '';
      const place = offset === null ? '' : `, "offset": ${offset}`;
      output.print(
        `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, ` +
          `"zero": ${zero}, "data": ${data}${packed}${place}}${more ? ',\n' : ''}`,
      );
      return;
    }
    if (!entry.data || entry.zero) return;
    if (entry.offset === null)
      throw new BlockError('File contains external, encrypted or compressed clusters.');
    const columns = [entry.start, entry.length, entry.offset].map((value) => hex(value).padEnd(16));
    output.print(`${columns.join('')}${entry.filename ?? ''}\n`);
  }
}

/** C's "%#x". */
function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}

const NOTHING: MapEntry = {
  start: 0,
  length: 0,
  data: false,
  zero: false,
  present: false,
  compressed: false,
  depth: 0,
  offset: null,
  filename: null,
};

/** Whether `next` goes on where `entry` ends, in the image and in the file. */
function continues(entry: MapEntry, next: MapEntry): boolean {
  return (
    entry.length > 0 &&
    entry.zero === next.zero &&
    entry.data === next.data &&
    entry.present === next.present &&
    entry.depth === next.depth &&
    entry.filename === next.filename &&
    (entry.offset === null ? next.offset === null : entry.offset + entry.length === next.offset)
  );
}

/** The stretch at `offset`, found by going down the chain until a layer knows. */
async function entryAt(top: BlockNode, offset: number, bytes: number): Promise<MapEntry> {
  let length = bytes;
  let depth = 0;
  for (let node = top; ; depth++) {
    const status = await statusOf(node, offset, length);
    const { flags, file } = status;
    length = status.bytes;
    const below = backingOf(node);
    if ((flags & (Status.zero | Status.data)) === 0 && below !== null) {
      node = below;
      continue;
    }
    const hasOffset = (flags & Status.offsetValid) !== 0;
    return {
      start: offset,
      length,
      data: (flags & Status.data) !== 0,
      zero: (flags & Status.zero) !== 0,
      present: (flags & Status.allocated) !== 0,
      compressed: (flags & Status.compressed) !== 0,
      depth,
      offset: hasOffset ? status.map : null,
      filename: hasOffset && file !== null ? (exactFilename(file) ?? nodeFilename(file)) : null,
    };
  }
}

async function statusOf(node: BlockNode, offset: number, bytes: number) {
  try {
    return await node.layer.graphLock.withRead((guard) =>
      layerStatus(node, guard, true, offset, bytes, exactBlockStatus),
    );
  } catch (error) {
    throw errnoError('Failed to read image metadata', errnoOf(error));
  }
}
