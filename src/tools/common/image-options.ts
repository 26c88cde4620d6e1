/**
 * Nodes described on a tool's command line: `--image-opts driver=qcow2,file.filename=...`, and json: names.
 *
 * Less is required here than over QMP: a driver may be left out (a file's name says which protocol it is, a format is
 * probed), and values may be text. What a driver does not know is reported when the node is open, as the original does.
 */

import { VISITOR_TYPES } from '../../../schema/generated/visitor-tables.ts';
import type { DefinitionReader } from '../../block/contract/definitions.ts';
import type { OpenPurpose } from '../../block/contract/driver.ts';
import type { DriverFace } from '../../block/contract/face.ts';
import type { DriverOptions, FlatOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import type { BlockLayer } from '../../block/layer.ts';
import {
  absoluteBackingName,
  pathOptions,
  probeFormat,
  protocolOptions,
} from '../../block/open/image-name.ts';
import { openFromOptions } from '../../block/open/open.ts';
import { flatten } from '../../block/open/options.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import { parseJsonText } from '../../qmp/json-parse.ts';
import type { FlatPair } from './flat-options.ts';
import { parseNumber, parseSize } from './size.ts';

type Tree = Record<string, unknown>;

const SIZE_HINT =
  'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.';
/** Nesting of definitions on a command line. */
const MAX_DEPTH = 64;
/** Children whose own definition is that of a protocol when it names no driver. */
const PROTOCOL_CHILDREN: ReadonlySet<string> = new Set(['file', 'data-file', 'image', 'log', 'raw']);
/** The others: their definitions stand on their own. */
const FORMAT_CHILDREN: ReadonlySet<string> = new Set(['backing', 'test', 'target']);
/** Children of whom there may be many, by number. */
const CHILD_LISTS: ReadonlySet<string> = new Set(['children']);
/** Options with the name of a child, as names like blkdebug: give them, by the child they are for. */
const NAMED_CHILDREN: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  blkdebug: { image: 'x-image' },
  blkverify: { test: 'x-image', raw: 'x-raw' },
};

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Dotted keys as nested records. */
export function nestOptions(pairs: readonly FlatPair[]): DriverOptions {
  const root: Tree = Object.create(null) as Tree;
  for (const { key, value } of withoutShortForms(pairs)) {
    const parts = key.split('.');
    let at = root;
    for (const part of parts.slice(0, -1)) {
      at[part] ??= Object.create(null);
      const inner = at[part];
      if (!isTree(inner)) throw new BlockError(`Parameters '${part}.*' used inconsistently`);
      at = inner;
    }
    const last = parts.at(-1)!;
    if (isTree(at[last])) throw new BlockError(`Parameters '${key}.*' used inconsistently`);
    at[last] = value;
  }
  return root;
}

const OVERLAP_CHECK = 'overlap-check';

/** `overlap-check` is short for `overlap-check.template`, and may stand beside other members; not beside another value. */
function withoutShortForms(pairs: readonly FlatPair[]): readonly FlatPair[] {
  const given = (wanted: string): string | undefined => pairs.findLast(({ key }) => key === wanted)?.value;
  const [short, long] = [given(OVERLAP_CHECK), given(`${OVERLAP_CHECK}.template`)];
  if (short === undefined || !pairs.some(({ key }) => key.startsWith(`${OVERLAP_CHECK}.`))) return pairs;
  if (long !== undefined && long !== short) {
    throw new BlockError(
      `Conflicting values for qcow2 options 'overlap-check' ('${short}') and 'overlap-check.template' ('${long}')`,
      { errno: E.EINVAL },
    );
  }
  return pairs.map((pair) =>
    pair.key === OVERLAP_CHECK ? { ...pair, key: `${OVERLAP_CHECK}.template` } : pair,
  );
}

/** What is wrong with options in ways that are reported only when the node is open. */
type Complaints = BlockError[];

/** Opens the node that `options` describe; `settings` are the tool's own, used where the options say nothing. */
export async function openDescribed(
  layer: BlockLayer,
  options: DriverOptions,
  settings: DriverOptions,
  purpose: OpenPurpose,
): Promise<BlockNode> {
  const complaints: Complaints = [];
  const complete = await completed(layer, options, settings, complaints, 0);
  const node = await openFromOptions(layer, mergeSettings(settings, complete), purpose);
  if (options.driver === undefined) node.driver.wasProbed?.(node);
  const [complaint] = complaints;
  if (complaint === undefined) return node;
  await layer.closeNode(node);
  throw complaint;
}

/** Options for nodes that are open, in flat form, values by the types that each node's driver has for them. */
export function typedChange(node: BlockNode, given: DriverOptions): FlatOptions {
  const complaints: Complaints = [];
  const changes: Record<string, unknown> = {};
  const own: Tree = {};
  for (const [name, value] of Object.entries(given)) {
    const child = node.child(name)?.node;
    if (child === undefined || !isTree(value)) own[name] = value;
    else
      for (const [inner, typed] of Object.entries(typedChange(child, value)))
        changes[`${name}.${inner}`] = typed;
  }
  const typed = typedOptions(node.layer, { ...own, driver: node.driver.name }, complaints);
  const [complaint] = complaints;
  if (complaint !== undefined) throw complaint;
  const { driver: _, ...rest } = typed;
  return { ...flatten(rest), ...changes };
}

/** What the layer asks of floors that know the schema. */
export const definitionReader: DefinitionReader = {
  parseJson: parseJsonText,
  async complete(layer, options, settings) {
    const complaints: Complaints = [];
    const complete = await completed(layer, options, settings, complaints, 0);
    const [complaint] = complaints;
    if (complaint !== undefined) throw complaint;
    return complete;
  },
};

/** The tool's settings with what the options themselves say on top. */
function mergeSettings(settings: DriverOptions, options: DriverOptions): DriverOptions {
  const cache = { ...(settings.cache as object | undefined), ...(options.cache as object | undefined) };
  const merged = { ...settings, ...options };
  return Object.keys(cache).length === 0 ? merged : { ...merged, cache };
}

/** Stands in front of what is wrong with a backing file. */
const BELOW = 'Could not open backing file: ';

async function completed(
  layer: BlockLayer,
  options: DriverOptions,
  settings: DriverOptions,
  complaints: Complaints,
  depth: number,
): Promise<DriverOptions> {
  if (depth > MAX_DEPTH) throw new BlockError('Block device nesting is too deep');
  let tree = options;
  if (tree.driver === undefined) {
    if (tree.file === undefined)
      throw new BlockError('Must specify either driver or file', { errno: E.EINVAL });
  } else if (layer.drivers[String(tree.driver)] === undefined) {
    throw new BlockError(`Unknown driver '${String(tree.driver)}'`);
  }
  const part = async (name: string, value: DriverOptions): Promise<DriverOptions> => {
    if (name !== 'backing') return await completedChild(layer, name, value, settings, complaints, depth);
    const own: Complaints = [];
    const full = await within(BELOW, completedChild(layer, name, value, settings, own, depth));
    complaints.push(...own.map((complaint) => prefixed(BELOW, complaint) as BlockError));
    return full;
  };
  tree = withNamedChildren(layer, tree);
  const children: Tree = {};
  for (const [name, value] of Object.entries(tree)) {
    if (CHILD_LISTS.has(name)) children[name] = await completedList(value, (child) => part(name, child));
    else if (isTree(value) && isChild(name) && !isPartialBacking(layer, name, value))
      children[name] = await part(name, value);
  }
  tree = { ...tree, ...children };
  if (tree.driver === undefined) {
    const driver =
      typeof tree.file === 'string'
        ? String(unknownNode(tree.file))
        : await probedFormat(layer, tree.file as DriverOptions, settings);
    tree = { ...tree, driver };
  }
  const { backing } = tree;
  if (isTree(backing) && children.backing === undefined) {
    const { backing: _, ...image } = tree;
    const options = typedOptions(layer, image, complaints);
    const full = await completedBacking(layer, options, backing, settings);
    return { ...options, backing: await part('backing', full) };
  }
  return typedOptions(layer, tree, complaints);
}

/** Each child of a list, which may be one of elements or of numbers. */
async function completedList(
  value: unknown,
  part: (child: DriverOptions) => Promise<DriverOptions>,
): Promise<unknown> {
  if (typeof value !== 'object' || value === null) return value;
  const list: unknown[] = [];
  for (const child of Object.values(value)) list.push(isTree(child) ? await part(child) : child);
  const keys = Object.keys(value);
  return Array.isArray(value) ? list : Object.fromEntries(keys.map((key, index) => [key, list[index]]));
}

/** Names that stand for children as definitions, where options of the same child are given too. */
function withNamedChildren(layer: BlockLayer, tree: DriverOptions): DriverOptions {
  const result: Tree = { ...tree };
  for (const [child, option] of Object.entries(NAMED_CHILDREN[String(tree.driver)] ?? {})) {
    const { [child]: given, [option]: name } = tree;
    if (typeof name !== 'string' || !isTree(given)) continue;
    delete result[option];
    result[child] = onTopOf(layer, protocolOptions(layer, name), given, !PROTOCOL_CHILDREN.has(child));
  }
  return result;
}

/** What a name stands for (`own`) with the options `given` for it: a format goes on top where they want one. */
function onTopOf(
  layer: BlockLayer,
  own: DriverOptions,
  given: DriverOptions,
  mayProbe: boolean,
): DriverOptions {
  const face = given.driver === undefined ? null : layer.drivers[String(given.driver)];
  const isFormat = face === null ? mayProbe : face !== undefined && !isProtocolFace(face);
  if (!isFormat || own.file !== undefined) return { ...own, ...given };
  return { ...given, file: { ...own, ...(isTree(given.file) && given.file) } };
}

function isProtocolFace(face: DriverFace): boolean {
  return face.kind === 'protocol' || face.isProtocolFilter === true;
}

/** Whether options of a backing file leave it to the image to say which file that is. */
function isPartialBacking(layer: BlockLayer, name: string, value: DriverOptions): boolean {
  if (name !== 'backing') return false;
  const { driver, file } = value;
  const face = driver === undefined ? undefined : layer.drivers[String(driver)];
  if (driver !== undefined && (face === undefined || isProtocolFace(face))) return false;
  const isPath =
    isTree(file) && [undefined, 'file', 'host_device'].includes(file.driver as string | undefined);
  return file === undefined || (isPath && file.filename === undefined);
}

/** The options of a backing file with what the image says of it. */
async function completedBacking(
  layer: BlockLayer,
  image: DriverOptions,
  given: DriverOptions,
  settings: DriverOptions,
): Promise<DriverOptions> {
  const share = settings['force-share'] === true ? { 'force-share': true } : {};
  const cache = settings.cache === undefined ? {} : { cache: settings.cache };
  const node = await openFromOptions(layer, {
    ...cache,
    ...image,
    ...share,
    'read-only': true,
    ...(layer.drivers[String(image.driver)]?.supportsBacking === true && { backing: null }),
  });
  try {
    const named = node.driver.backingName?.(node) ?? null;
    if (named === null) return given;
    const name = absoluteBackingName(node, named.filename);
    const withFormat = named.format === null ? given : { driver: named.format, ...given };
    return onTopOf(layer, protocolOptions(layer, name), withFormat, true);
  } finally {
    await layer.closeNode(node);
  }
}

async function within<T>(context: string, action: Promise<T>): Promise<T> {
  try {
    return await action;
  } catch (error) {
    throw prefixed(context, error);
  }
}

function unknownNode(name: string): never {
  throw new BlockError(`Cannot find device='${name}' nor node-name='${name}'`);
}

function isChild(name: string): boolean {
  return FORMAT_CHILDREN.has(name) || PROTOCOL_CHILDREN.has(name);
}

function completedChild(
  layer: BlockLayer,
  name: string,
  child: DriverOptions,
  settings: DriverOptions,
  complaints: Complaints,
  depth: number,
): Promise<DriverOptions> {
  const named = PROTOCOL_CHILDREN.has(name) && child.driver === undefined && child.filename !== undefined;
  // An option's value is a path, whatever it looks like.
  const full = named ? { ...pathOptions(String(child.filename)), ...child } : child;
  return completed(layer, full, settings, complaints, depth + 1);
}

async function probedFormat(
  layer: BlockLayer,
  file: DriverOptions,
  settings: DriverOptions,
): Promise<string> {
  const share = settings['force-share'] === true ? { 'force-share': true } : {};
  const cache = settings.cache === undefined ? {} : { cache: settings.cache };
  const node = await openFromOptions(layer, { ...cache, ...file, ...share, 'read-only': true });
  try {
    return await probeFormat(node);
  } finally {
    await layer.closeNode(node);
  }
}

// ---- values --------------------------------------------------------------------------------------------------

/** Values by the schema's types; members nobody knows are dropped and complained about. */
function typedOptions(layer: BlockLayer, tree: DriverOptions, complaints: Complaints): DriverOptions {
  const driver = String(tree.driver);
  const modern = layer.drivers[driver]?.modernOptions?.(tree) ?? tree;
  const result: Tree = {};
  const types = membersOf('BlockdevOptions', driver);
  for (const [name, value] of Object.entries(modern)) {
    const type = types.get(name);
    if (type !== undefined) {
      result[name] =
        (isTree(value) && isChild(name)) || CHILD_LISTS.has(name) ? value : typedValue(type, value, name);
      continue;
    }
    const known = layer.drivers[driver];
    if (known?.nameOptions?.includes(name) === true) {
      result[name] = value;
      continue;
    }
    const isProtocol = known?.kind === 'protocol' || known?.isProtocolFilter === true;
    const full = leafName(name, value);
    complaints.push(
      new BlockError(
        isProtocol
          ? `Block protocol '${driver}' doesn't support the option '${full}'`
          : `Block format '${driver}' does not support the option '${full}'`,
      ),
    );
  }
  return result;
}

/** The name of the first value in an option, in dotted form. */
function leafName(name: string, value: unknown): string {
  const [first] = isTree(value) ? Object.entries(value) : [];
  return first === undefined ? name : leafName(`${name}.${first[0]}`, first[1]);
}

/** Members of a schema type by name; those of a union's branch `tag` among them, or of all branches. */
function membersOf(typeName: string, tag: string | null): ReadonlyMap<string, string> {
  const type = VISITOR_TYPES[typeName];
  if (type?.kind !== 'object') return new Map();
  const branches = Object.entries(type.branches ?? {}).filter(([name]) => tag === null || name === tag);
  const inherited = branches.flatMap(([, branch]) =>
    branch === null ? [] : [...membersOf(branch, null).entries()],
  );
  return new Map([...type.members.map(([name, member]) => [name, member] as const), ...inherited]);
}

function typedValue(typeName: string, value: unknown, path: string): unknown {
  switch (typeName) {
    case 'bool':
      return typeof value === 'string' ? typedBoolean(value, path) : value;
    case 'int64':
    case 'uint64':
    case 'uint32':
      return typeof value === 'string' ? typedNumber(value, path) : value;
    default: {
      if (!isTree(value)) return value;
      const type = VISITOR_TYPES[typeName];
      const inner = type?.kind === 'alternate' ? type.choices.object : typeName;
      if (inner === undefined) return value;
      const types = membersOf(inner, null);
      const entries = Object.entries(value).map(([name, member]) => [
        name,
        typedValue(types.get(name) ?? 'str', member, `${path}.${name}`),
      ]);
      return Object.fromEntries(entries);
    }
  }
}

function typedBoolean(value: string, path: string): boolean {
  if (['on', 'yes', 'true', 'y'].includes(value)) return true;
  if (['off', 'no', 'false', 'n'].includes(value)) return false;
  throw new BlockError(`Parameter '${path}' expects 'on' or 'off'`);
}

function typedNumber(value: string, path: string): number {
  // A plain number for the original, the others are sizes.
  if (path === 'cache-clean-interval') return Number(parseNumber(path, value));
  const size = parseSize(value);
  if (size.kind === 'size') return Number(size.bytes);
  if (size.kind === 'range') throw new BlockError(`Value '${value}' is out of range for parameter '${path}'`);
  throw new BlockError(`Parameter '${path}' expects a non-negative number below 2^64`, { hint: SIZE_HINT });
}
