/**
 * Options of a node as flat records: members and elements at any depth under dotted names, as they are compared when a
 * node is reopened. And the settings every node has, made from them.
 */

import { BlockError } from '../../errors/error.ts';
import type { BlockDriver } from '../contract/driver.ts';
import type { DriverOptions, FlatOptions } from '../contract/image.ts';
import { Role } from '../contract/request.ts';
import type { BlockNode, NodeSettings } from '../graph/node.ts';

/** Options of every node that can change, by their flat names. */
const COMMON_MUTABLE: readonly string[] = [
  'discard',
  'detect-zeroes',
  'cache.direct',
  'cache.no-flush',
  'read-only',
  'auto-read-only',
];
const COMMON: ReadonlySet<string> = new Set([
  ...COMMON_MUTABLE,
  'driver',
  'node-name',
  'force-share',
  'active',
  'untrusted',
]);

export function isCommonMutable(name: string): boolean {
  return COMMON_MUTABLE.includes(name);
}

function isBranch(value: unknown): value is object {
  return typeof value === 'object' && value !== null && Object.keys(value).length > 0;
}

export function flatten(options: DriverOptions, prefix = ''): FlatOptions {
  return Object.fromEntries(
    Object.entries(options).flatMap(([key, value]) =>
      isBranch(value)
        ? Object.entries(flatten(value as DriverOptions, `${prefix}${key}.`))
        : [[`${prefix}${key}`, value]],
    ),
  );
}

/** The opposite of `flatten`: members named 0, 1, ... become a list. */
export function nest(options: FlatOptions): DriverOptions {
  const tree: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [name, value] of Object.entries(options)) {
    const path = name.split('.');
    const last = path.pop()!;
    let at = tree;
    for (const part of path) {
      const inner = at[part];
      at[part] = typeof inner === 'object' && inner !== null ? inner : Object.create(null);
      at = at[part] as Record<string, unknown>;
    }
    at[last] = value;
  }
  return withLists(tree) as DriverOptions;
}

function withLists(value: unknown): unknown {
  if (!isBranch(value)) return value;
  const entries = Object.entries(value).map(([key, member]) => [key, withLists(member)] as const);
  if (entries.every(([key], index) => key === String(index))) return entries.map(([, member]) => member);
  return Object.fromEntries(entries);
}

/** Whether the flat name is that of the option `name` or of something inside it. */
export function isWithin(flatName: string, name: string): boolean {
  return flatName === name || flatName.startsWith(`${name}.`);
}

export function pick(options: FlatOptions, keep: (name: string) => boolean): FlatOptions {
  return Object.fromEntries(Object.entries(options).filter(([name]) => keep(name)));
}

/** The options inside `name`, by their names there. */
export function inside(options: FlatOptions, name: string): FlatOptions {
  const prefix = `${name}.`;
  return Object.fromEntries(
    Object.entries(options)
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, value]) => [key.slice(prefix.length), value]),
  );
}

const INHERITED: readonly string[] = ['cache.direct', 'cache.no-flush', 'force-share', 'untrusted'];
/** A backing image is not written to unless somebody says so; others are what their parent is. */
const BACKING_DEFAULTS: FlatOptions = { 'read-only': true, 'auto-read-only': false };

/** What a reopened node with these options passes on to one that it defines inline in a child of these roles. */
export function inheritedOptions(parent: FlatOptions, roles: number): FlatOptions {
  const isBacking = (roles & Role.cow) !== 0;
  const names = isBacking ? INHERITED : [...INHERITED, ...Object.keys(BACKING_DEFAULTS)];
  return { ...(isBacking && BACKING_DEFAULTS), ...pick(parent, (name) => names.includes(name)) };
}

/** The settings as options, for a node that has just been opened. */
function settingsInEffect(settings: NodeSettings): FlatOptions {
  return {
    'cache.direct': settings.cache.direct,
    'cache.no-flush': settings.cache.noFlush,
    'read-only': settings.readOnly,
    'auto-read-only': settings.autoReadOnly,
    ...(settings.forceShare && { 'force-share': true }),
    ...(settings.untrusted && { untrusted: true }),
  };
}

/** Records what an open node was given, its children's options and references left out. */
export function recordOptions(node: BlockNode, options: DriverOptions): void {
  const isChilds = (name: string): boolean => name === 'backing' || isOfChild(node, name);
  const given = pick(flatten(options), (name) => !isChilds(name));
  node.optionsGiven = given;
  node.optionsInEffect = { ...settingsInEffect(node.settings), ...given };
}

/** Whether the flat name means a child of the node, or one of the child's options. */
export function isOfChild(node: BlockNode, name: string): boolean {
  return node.children.some((edge) => isWithin(name, edge.name));
}

/**
 * Settings of a reopened node. What is left out of `options` goes back to its default; only discards stay what they
 * were, and always reach a node that is reopened with its parent, because that one decides about them.
 */
export function reopenedSettings(node: BlockNode, options: FlatOptions, withParent: boolean): NodeSettings {
  const { settings } = node;
  const { discard } = options;
  const discardUnmap = discard === undefined ? withParent || settings.discardUnmap : discard === 'unmap';
  const detectZeroes = (options['detect-zeroes'] as NodeSettings['detectZeroes'] | undefined) ?? 'off';
  return {
    name: node.name,
    options: nest(pick(options, (name) => !COMMON.has(name) && name !== 'backing' && !isOfChild(node, name))),
    readOnly: options['read-only'] === true,
    autoReadOnly: options['auto-read-only'] === true,
    forceShare: settings.forceShare,
    active: settings.active,
    // Trust does not come with a change of options.
    untrusted: settings.untrusted,
    discardUnmap,
    detectZeroes,
    cache: {
      direct: options['cache.direct'] === true,
      noFlush: options['cache.no-flush'] === true,
    },
  };
}

/** Throws when zeroes are to be unmapped and discards are not. */
export function checkDetectZeroes({ detectZeroes, discardUnmap }: NodeSettings): void {
  if (detectZeroes !== 'unmap' || discardUnmap) return;
  throw new BlockError(
    'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
  );
}

/** Whether leaving out an option of the driver is allowed, and whether giving it anew is. */
export function mayLeaveOut(driver: BlockDriver, name: string): boolean {
  return driver.mutableOptions?.[firstName(name)] === 'resets';
}

export function mayChange(driver: BlockDriver, name: string): boolean {
  const leftOut = driver.mutableOptions?.[firstName(name)];
  return leftOut === 'resets' || leftOut === 'refused';
}

/** Whether an option that is given counts as changed, whatever its value. */
export function isNeverSame(driver: BlockDriver, name: string): boolean {
  // The original has lost force-share when it compares.
  return (
    name === 'force-share' ||
    name === 'untrusted' ||
    driver.mutableOptions?.[firstName(name)] === 'never-same'
  );
}

function firstName(name: string): string {
  return name.split('.', 1)[0]!;
}
