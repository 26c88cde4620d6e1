/**
 * The node that the settings of `open` and of the command line stand for: a file name, its format and options in text
 * form become one definition. Opening it is image.ts.
 */

import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { protocolOptions, protocolPrefix } from '../../block/open/image-name.ts';
import { namedProtocol } from '../../block/open/open.ts';
import { BlockError } from '../../errors/error.ts';
import { type FlatPair, parseFlatOptions } from '../common/flat-options.ts';
import { nestOptions } from '../common/image-options.ts';
import type { OpenSettings } from './session.ts';

/** Protocols whose driver has the option `aio`. */
const FILE_PROTOCOLS: ReadonlySet<unknown> = new Set(['file', 'host_cdrom', 'host_device']);
const DISCARD_MODES: Readonly<Record<string, string>> = {
  unmap: 'unmap',
  on: 'unmap',
  ignore: 'ignore',
  off: 'ignore',
};
const OVERLAP_CHECKS = ['none', 'constant', 'cached', 'all'];

export function isDiscardMode(text: string): boolean {
  return Object.hasOwn(DISCARD_MODES, text);
}

/** Whether a discard mode makes discards reach the file. */
export function unmaps(mode: string): boolean {
  return DISCARD_MODES[mode] === 'unmap';
}

export function isRecord(value: unknown): value is DriverOptions {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Options in text form, nested; with their pairs in order. Help is not offered: the word is an option like another. */
export function textOptions(
  text: string,
  warn: (message: string) => void,
): { readonly pairs: readonly FlatPair[]; readonly options: DriverOptions } {
  const { pairs, help } = parseFlatOptions(text, null, warn);
  const word = text.split(',').includes('?') ? '?' : 'help';
  const all = help ? [...pairs, { key: word, value: 'on' }] : pairs;
  return { pairs: all, options: nestOptions(all) };
}

/** The definition; null when name and format alone say it all. */
export function definitionOf(layer: BlockLayer, settings: OpenSettings): DriverOptions | null {
  const { name, aio } = settings;
  if (name === null) return withAio(checkedOptions(settings.options), aio);
  if (aio === null && Object.keys(settings.options).length === 0) return null;
  const { driver = settings.format, ...rest } = checkedOptions(settings.options);
  const own = protocolOptions(layer, name);
  return withAio(combined(layer, name, own, driver === null ? null : String(driver), rest), aio);
}

/** What the name stands for (`own`) with the other options on top. */
function combined(
  layer: BlockLayer,
  name: string,
  own: DriverOptions,
  driver: string | null,
  rest: DriverOptions,
): DriverOptions {
  if (isRecord(own.file)) return { ...own, ...(driver !== null && { driver }), ...rest };
  const face = driver === null ? undefined : layer.drivers[driver];
  const isProtocol = face?.kind === 'protocol' || face?.isProtocolFilter === true;
  const { file = {} } = rest;
  if (!isRecord(file)) {
    throw new BlockError(
      'Cannot reference an existing block device with additional options or a new filename',
    );
  }
  if ((isProtocol ? rest : file).filename !== undefined)
    throw new BlockError("Can't specify 'file' and 'filename' options at the same time");
  if (isProtocol) return { ...own, ...rest, driver };
  // A driver for the file takes the name as its own.
  const fileFace = file.driver === undefined ? undefined : layer.drivers[String(file.driver)];
  const named = fileFace === undefined ? own : namedProtocol(fileFace, own, name);
  return { ...(driver !== null && { driver }), ...rest, file: { ...named, ...file } };
}

/** The options; throws for values of a fixed set that nobody knows. */
function checkedOptions(options: DriverOptions): DriverOptions {
  const { discard, 'detect-zeroes': detect, 'overlap-check': overlap } = options;
  if (typeof discard === 'string' && !isDiscardMode(discard)) throw new BlockError('Invalid discard option');
  if (typeof detect === 'string' && !['off', 'on', 'unmap'].includes(detect))
    throw new BlockError(`invalid parameter value: ${detect}`);
  const template = isRecord(overlap) ? overlap.template : overlap;
  if (typeof template === 'string' && !OVERLAP_CHECKS.includes(template)) {
    throw new BlockError(
      `Unsupported value '${template}' for qcow2 option 'overlap-check'. Allowed are any of the following: ${OVERLAP_CHECKS.join(', ')}`,
    );
  }
  return typeof discard === 'string' ? { ...options, discard: DISCARD_MODES[discard] } : options;
}

/** The definition with the engine set where a file is opened and none is said. */
function withAio(options: DriverOptions, aio: string | null): DriverOptions {
  if (aio === null) return options;
  const { driver, filename, file } = options;
  if (isRecord(file)) return { ...options, file: withAio(file, aio) };
  const protocol = driver ?? protocolPrefix(String(filename)) ?? 'file';
  return typeof filename === 'string' && FILE_PROTOCOLS.has(protocol) ? { aio, ...options } : options;
}
