/** Images to be made: the options that two drivers have together, and the line that says what is made. */

import { BlockError } from '../../errors/error.ts';
import type { BlockDriver } from '../contract/driver.ts';
import type { CreateOption } from '../contract/image.ts';
import type { BlockLayer } from '../layer.ts';
import { protocolOptions, protocolPrefix } from './image-name.ts';

/** The driver of the protocol that a file name stands for. */
export async function findProtocol(layer: BlockLayer, filename: string): Promise<BlockDriver> {
  if (protocolPrefix(filename) === 'json') throw new BlockError("Unknown protocol 'json'");
  return (await layer.driver(String(protocolOptions(layer, filename).driver)))!;
}

/** The options of both, each name once. */
export function creationOptions(format: BlockDriver, protocol: BlockDriver | null): readonly CreateOption[] {
  const own = format.creation?.options ?? [];
  const names = new Set(own.map(({ name }) => name));
  return [...own, ...(protocol?.creation?.options ?? []).filter(({ name }) => !names.has(name))];
}

/** "name=value ..." for the options that have a value, given or by default. */
function describeValues(options: readonly CreateOption[], values: ReadonlyMap<string, string>): string {
  return options
    .flatMap(({ name, default: byDefault }) => {
      const value = values.get(name) ?? byDefault;
      // Commas are doubled, as on a command line.
      return value === undefined ? [] : [`${name}=${value.replaceAll(',', ',,')}`];
    })
    .join(' ');
}

/** What the original says before it makes an image. */
export function formattingLine(
  filename: string,
  format: string,
  options: readonly CreateOption[],
  values: ReadonlyMap<string, string>,
): string {
  return `Formatting '${filename}', fmt=${format} ${describeValues(options, values)}\n`;
}
