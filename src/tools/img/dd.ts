/** `dd`: copies part of an image into a new one, told as dd(1) is told. */

import { createMover } from '../../block/copy/mover.ts';
import { strerror } from '../../errors/errno.ts';
import { BlockError, errnoOf, prefixed } from '../../errors/error.ts';
import { openNamedImage } from '../common/environment.ts';
import { type CommandContext, checkFormatGiven, readOptions, readSize } from './common/command.ts';
import { findFormat } from './common/creation.ts';
import { Moves } from './common/moves.ts';
import { makeImage } from './create.ts';
import { DD } from './tables/making.ts';

const MAX_BLOCK_BYTES = 2 ** 31 - 1;
const SECTOR_BYTES = 512;

interface Operands {
  readonly if?: string;
  readonly of?: string;
  readonly bs?: number;
  readonly count?: number;
  readonly skip?: number;
}

export async function dd(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let outputFormat = 'raw';
  let imageOpts = false;
  let forceShare = false;
  const operands = await readOptions(context, DD, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'outputFormat') outputFormat = value;
    else if (name === 'imageOpts') imageOpts = true;
    else forceShare = true;
  });
  const given = parseOperands(context, operands);
  if (given.if === undefined || given.of === undefined)
    throw new BlockError('Must specify both input and output files');
  checkFormatGiven(imageOpts, format);
  const env = context.environment();
  const source = await openNamedImage(env, { name: given.if, format, imageOpts, forceShare });
  if (!Object.hasOwn(env.layer.drivers, outputFormat)) throw new BlockError('Unknown file format');
  const driver = await findFormat(env.layer, outputFormat);
  if (driver.creation === undefined)
    throw new BlockError(`Format driver '${driver.name}' does not support image creation`);

  const { bs = SECTOR_BYTES, count, skip = 0 } = given;
  // As in the original, blocks that are skipped count.
  const end = Math.min(source.node.totalBytes, count === undefined ? Number.POSITIVE_INFINITY : count * bs);
  const start = skip * bs;
  const bytes = Math.max(0, end - start);
  if (start > end) context.output.error(`${given.if}: cannot skip to specified offset`);
  try {
    await makeImage(env, driver, given.of, new Map([['size', String(bytes)]]));
  } catch (error) {
    throw prefixed(`${given.of}: error while creating output image: `, error);
  }
  const target = await openNamedImage(env, {
    name: given.of,
    format: outputFormat,
    imageOpts: false,
    write: true,
  });
  const mover = createMover({
    source: () => source.node,
    target: () => target.node,
    clusterBytes: SECTOR_BYTES,
    targetStart: -start,
  });
  const moves = new Moves(mover, env.layer.graphLock, () => undefined);
  await moves.add(start, bytes, 'data');
  const failure = await moves.end();
  if (failure !== null) {
    const what = failure.isRead ? 'reading from input' : 'writing to output';
    throw new BlockError(`error while ${what} image file: ${strerror(errnoOf(failure.error))}`);
  }
  await target.close();
  return 0;
}

function parseOperands({ output }: CommandContext, words: readonly string[]): Operands {
  const given: { -readonly [K in keyof Operands]: Operands[K] } = {};
  for (const word of words) {
    const [, name = word, value] = /^([^=]*)=([\s\S]*)$/.exec(word) ?? [];
    if (value === undefined) throw new BlockError(`unrecognized operand ${name}`);
    if (name === 'if' || name === 'of') given[name] = value;
    else if (name === 'count' || name === 'skip') given[name] = readSize(output, name, value);
    else if (name === 'bs') {
      const bytes = readSize(output, name, value);
      if (bytes < 1 || bytes > MAX_BLOCK_BYTES)
        throw new BlockError(`Invalid bs specified. Must be between 1 and ${MAX_BLOCK_BYTES}.`);
      given.bs = bytes;
    } else throw new BlockError(`unrecognized operand ${name}`);
  }
  return given;
}
