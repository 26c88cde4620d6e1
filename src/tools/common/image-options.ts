/**
 * Nodes described on a tool's command line: `--image-opts driver=qcow2,file.filename=...`, and json: names.
 *
 * Less is required here than over QMP: a driver may be left out (a file's name says which protocol it is, a format is
 * probed), and values may be text. What a driver does not know is reported when the node is open, as the original does.
 */

import { VISITOR_TYPES } from '../../../schema/generated/visitor-tables.ts';
import type { OpenPurpose } from '../../block/contract/driver.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { probeFormat, protocolOptions } from '../../block/open/image-name.ts';
import { openFromOptions } from '../../block/open/open.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import type { FlatPair } from './flat-options.ts';
import { parseSize } from './size.ts';

type Tree = Record<string, unknown>;

const SIZE_HINT =
  'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.';
/** Nesting of definitions on a command line. */
const MAX_DEPTH = 64;
/** Children whose own definition is that of a protocol when it names no driver. */
const PROTOCOL_CHILDREN: ReadonlySet<string> = new Set(['file', 'data-file', 'image', 'log', 'raw', 'test']);

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Dotted keys as nested records. */
export function nestOptions(pairs: readonly FlatPair[]): DriverOptions {
  const root: Tree = Object.create(null) as Tree;
  for (const { key, value } of pairs) {
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

/** The tool's settings with what the options themselves say on top. */
function mergeSettings(settings: DriverOptions, options: DriverOptions): DriverOptions {
  const cache = { ...(settings.cache as object | undefined), ...(options.cache as object | undefined) };
  const merged = { ...settings, ...options };
  return Object.keys(cache).length === 0 ? merged : { ...merged, cache };
}

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
  const children: Tree = {};
  for (const [name, value] of Object.entries(tree)) {
    if (!isTree(value) || !isChild(name)) continue;
    children[name] = await completedChild(layer, name, value, settings, complaints, depth);
  }
  tree = { ...tree, ...children };
  if (tree.driver === undefined) {
    const driver =
      typeof tree.file === 'string'
        ? String(unknownNode(tree.file))
        : await probedFormat(layer, tree.file as DriverOptions, settings);
    tree = { ...tree, driver };
  }
  return typedOptions(layer, tree, complaints);
}

function unknownNode(name: string): never {
  throw new BlockError(`Cannot find device='${name}' nor node-name='${name}'`);
}

function isChild(name: string): boolean {
  return name === 'backing' || PROTOCOL_CHILDREN.has(name);
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
  const full = named ? { ...protocolOptions(layer, String(child.filename)), ...child } : child;
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
      result[name] = isTree(value) && isChild(name) ? value : typedValue(type, value, name);
      continue;
    }
    const known = layer.drivers[driver];
    if (known?.nameOptions?.includes(name) === true) {
      result[name] = value;
      continue;
    }
    const isProtocol = known?.kind === 'protocol' || known?.isProtocolFilter === true;
    complaints.push(
      new BlockError(
        isProtocol
          ? `Block protocol '${driver}' doesn't support the option '${name}'`
          : `Block format '${driver}' does not support the option '${name}'`,
      ),
    );
  }
  return result;
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
  const size = parseSize(value);
  if (size.kind === 'size') return Number(size.bytes);
  throw new BlockError(`Parameter '${path}' expects a non-negative number below 2^64`, { hint: SIZE_HINT });
}
