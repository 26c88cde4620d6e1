/** What completions offer beside the names of options: formats, their options, and the keys of the daemon's options. */

import { CHARDEV_OPTIONS } from '../../daemon/arguments/chardev-option.ts';
import { type OptionLine, optionsOf } from '../../daemon/option-help.ts';
import { OPTION_TEXTS } from '../../schema/generated/option-help.ts';
import { VISITOR_TYPES } from '../../schema/generated/visitor-tables.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import type { LazyDriver } from '../../src/block/contract/face.ts';
import { CHARDEV_BACKEND_KINDS } from '../../src/chardev/table.ts';
import { drivers as driverTable } from '../../src/drivers/table.ts';
import { QOM_TYPES, qomProperties } from '../../src/objects/types.ts';

/** KEY=VALUE,... where a first key chooses the others. */
export interface KeyedOption {
  /** The key that may be left out of the first value; null: there is none. */
  readonly implied: string | null;
  /** Values of that key. */
  readonly values: readonly { readonly name: string; readonly text: string; readonly keys: readonly Key[] }[];
  /** Keys that always fit. */
  readonly keys: readonly Key[];
}

export interface Key {
  readonly name: string;
  /** Values, where there are few. */
  readonly choices: readonly string[];
}

export interface CreationKey extends Key {
  /** Kind of value. */
  readonly type: string;
  readonly text: string;
}

export interface Format {
  readonly name: string;
  /** Options of -o, where images can be made. */
  readonly options: readonly CreationKey[];
}

const drivers: Readonly<Record<string, BlockDriver | LazyDriver>> = driverTable;

async function loaded(name: string): Promise<BlockDriver> {
  const driver = drivers[name];
  if (driver === undefined) throw new Error(`there is no driver ${name}`);
  return ('load' in driver ? await driver.load() : driver) as BlockDriver;
}

/** Formats of images, by name. */
export async function imageFormats(): Promise<Format[]> {
  const names = Object.keys(drivers).filter((name) => drivers[name]?.kind === 'format');
  const formats = await Promise.all(names.sort().map(loaded));
  // Formats that are no images (quorum, snapshot-access) are neither found by looking nor made.
  const images = formats.filter(({ probe, creation }) => probe !== undefined || creation !== undefined);
  return images.map(({ name, creation }) => ({
    name,
    options: (creation?.options ?? []).map((option) => ({
      name: option.name,
      choices: option.type === 'bool' ? ['on', 'off'] : [],
      type: option.type,
      text: option.help,
    })),
  }));
}

function keyOf({ name, type }: OptionLine): Key {
  return { name, choices: type.includes('|') ? type.split('|') : [] };
}

function fromSchema(typeName: string, tag: string): KeyedOption {
  const type = VISITOR_TYPES[typeName];
  if (type?.kind !== 'object' || type.tag !== tag) throw new Error(`${typeName} has no tag ${tag}`);
  const texts = OPTION_TEXTS[type.members.find(([name]) => name === tag)?.[1] ?? ''] ?? {};
  return {
    implied: tag,
    values: Object.keys(type.branches ?? {}).map((name) => ({
      name,
      text: texts[name] ?? '',
      keys: optionsOf(typeName, name).own.map(keyOf),
    })),
    keys: optionsOf(typeName, null).common.map(keyOf),
  };
}

const PROPERTY_CHOICES: Readonly<Record<string, readonly string[]>> = { bool: ['on', 'off'] };

function objects(): KeyedOption {
  const types = Object.keys(QOM_TYPES).filter((name) => QOM_TYPES[name]?.userCreatable === true);
  return {
    implied: 'qom-type',
    values: types.sort().map((name) => ({
      name,
      text: '',
      keys: qomProperties(name)
        .filter(([property]) => property !== 'type' && property !== 'loaded')
        .map(([property, kind]) => ({ name: property, choices: PROPERTY_CHOICES[kind] ?? [] })),
    })),
    keys: [{ name: 'id', choices: [] }],
  };
}

function chardevs(): KeyedOption {
  return {
    implied: 'backend',
    values: CHARDEV_BACKEND_KINDS.map((name) => ({ name, text: '', keys: [] })),
    keys: [
      { name: 'id', choices: [] },
      ...Object.entries(CHARDEV_OPTIONS)
        .filter(([name]) => name !== 'backend')
        .map(([name, type]) => ({ name, choices: type === 'bool' ? ['on', 'off'] : [] })),
    ],
  };
}

const plain = (typeName: string): KeyedOption => ({
  implied: null,
  values: [],
  keys: optionsOf(typeName, null).common.map(keyOf),
});

/** By option of the daemon. */
export function keyedOptions(): Readonly<Record<string, KeyedOption>> {
  return {
    blockdev: fromSchema('BlockdevOptions', 'driver'),
    chardev: chardevs(),
    export: fromSchema('BlockExportOptions', 'type'),
    monitor: plain('MonitorOptions'),
    'nbd-server': plain('NbdServerOptions'),
    object: objects(),
  };
}
