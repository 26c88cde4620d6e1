/**
 * The options of images to be made (`-o`): which there are, their help, and their values read by type.
 *
 * A format's options come first, then those of the protocol that its file is made with.
 */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import type { CreateOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { BlockError } from '../../../errors/error.ts';
import { parseFlatOptions } from '../../common/flat-options.ts';
import { parseNumber, parseSize } from '../../common/size.ts';

/** Values by option name: sizes and numbers as decimal digits, switches as on or off. */
export type Values = Map<string, string>;

export async function findFormat(layer: BlockLayer, name: string): Promise<BlockDriver> {
  const driver = await layer.driver(name);
  if (driver === undefined) throw new BlockError(`Unknown file format '${name}'`);
  return driver;
}

/** Throws unless images can be made with both. */
export function checkCreatable(format: BlockDriver, protocol: BlockDriver): void {
  if (format.creation === undefined)
    throw new BlockError(`Format driver '${format.name}' does not support image creation`);
  if (protocol.creation === undefined)
    throw new BlockError(`Protocol driver '${protocol.name}' does not support image creation`);
}

// ---- help ----------------------------------------------------------------------------------------------------

const TYPE_TEXTS = { size: 'size', bool: 'bool (on/off)', string: 'str', number: 'num' } as const;

/** Whether option text asks for help instead. */
export function asksForHelp(text: string): boolean {
  return parseFlatOptions(text, 'help', () => undefined).help;
}

/** One line per option, by name. */
export function optionHelp(options: readonly CreateOption[]): string {
  return options
    .map(({ name, type, help }) => `  ${`${name}=<${TYPE_TEXTS[type]}>`.padEnd(22)} - ${help}\n`)
    .sort()
    .join('');
}

// ---- values --------------------------------------------------------------------------------------------------

const SIZE_HINT =
  'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.';

/**
 * Reads option text; throws the original's errors for names and values that cannot be. `elsewhere`: options that the
 * same format takes when an image is made, where they are not these.
 */
export function parseValues(
  options: readonly CreateOption[],
  text: string | null,
  elsewhere: readonly CreateOption[] = [],
): Values {
  const values: Values = new Map();
  if (text === null) return values;
  // Nobody is told that a key alone is deprecated here.
  for (const { key, value } of parseFlatOptions(text, null, () => undefined).pairs) {
    const option = options.find(({ name }) => name === key);
    if (option === undefined) {
      const isKnown = elsewhere.some(({ name }) => name === key);
      throw new BlockError(
        `Invalid parameter '${key}'`,
        isKnown ? { hint: 'This option is only supported for image creation' } : {},
      );
    }
    values.set(key, typedText(option, value));
  }
  return values;
}

/** Puts -b and -F among the values; throws where `format`, whose options these are, has no backing images. */
export function setBacking(
  values: Values,
  options: readonly CreateOption[],
  format: string,
  given: { readonly backingFile: string | null; readonly backingFormat: string | null },
): void {
  const takes = (name: string): boolean => options.some((option) => option.name === name);
  if (given.backingFile !== null) {
    if (!takes('backing_file'))
      throw new BlockError(`Backing file not supported for file format '${format}'`);
    values.set('backing_file', given.backingFile);
  }
  if (given.backingFormat !== null) {
    if (!takes('backing_fmt'))
      throw new BlockError(`Backing file format not supported for file format '${format}'`);
    values.set('backing_fmt', given.backingFormat);
  }
}

function typedText({ name, type }: CreateOption, value: string): string {
  switch (type) {
    case 'string':
      return value;
    case 'bool':
      if (['on', 'yes', 'true', 'y'].includes(value)) return 'on';
      if (['off', 'no', 'false', 'n'].includes(value)) return 'off';
      throw new BlockError(`Parameter '${name}' expects 'on' or 'off'`);
    case 'number': {
      const number = parseNumber(name, value);
      // Negative ones count from 2^64 down; they are shown as they were written.
      return value.includes('-') ? value.trim() : number.toString();
    }
    case 'size':
      return parseSizeValue(name, value).toString();
  }
}

/** The value of a size option. */
export function parseSizeValue(name: string, value: string): bigint {
  const size = parseSize(value);
  if (size.kind === 'size') return size.bytes;
  if (size.kind === 'range') throw new BlockError(`Value '${value}' is out of range for parameter '${name}'`);
  throw new BlockError(`Parameter '${name}' expects a non-negative number below 2^64`, { hint: SIZE_HINT });
}
