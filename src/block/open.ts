/**
 * Opening nodes: from the options of blockdev-add to a node in the graph.
 *
 * Options are plain data, validated against the schema. A child is given as the name of an existing node or as
 * inline options, to any depth. An inline child inherits cache modes, read-only, auto-read-only and force-share from
 * its parent where it does not set them itself; discards always reach it, because the parent decides about them.
 */

import { BlockError, errnoError, errnoOf } from '../errors/error.ts';
import { type DriverOptions, type OpenContext, Perm } from './driver.ts';
import { coRefreshLength } from './io-size.ts';
import type { BlockLayer } from './layer.ts';
import { type BlockChild, BlockNode, type NodeSettings } from './node.ts';
import { refreshPermissions } from './permissions.ts';

/** Longest node name, without the terminator the original counts. */
const NODE_NAME_MAX = 31;
/** Nesting of inline definitions; the JSON reader allows more, the recursion here must not follow it for ever. */
const MAX_DEPTH = 512;

const COMMON_OPTIONS = new Set([
  'driver',
  'node-name',
  'discard',
  'cache',
  'read-only',
  'auto-read-only',
  'force-share',
  'detect-zeroes',
]);

type Inherited = Pick<NodeSettings, 'readOnly' | 'autoReadOnly' | 'forceShare' | 'cache'>;

/** blockdev-add: opens a node and whatever it defines inline; the monitor owns it. */
export async function addNode(layer: BlockLayer, options: DriverOptions): Promise<BlockNode> {
  if (options['node-name'] === undefined)
    throw new BlockError("'node-name' must be specified for the root node");
  const node = await openNode(layer, options, null, 0);
  node.monitorOwned = true;
  return node;
}

async function openNode(
  layer: BlockLayer,
  options: DriverOptions,
  inherited: Inherited | null,
  depth: number,
): Promise<BlockNode> {
  if (depth > MAX_DEPTH) throw new BlockError('Block device nesting is too deep');
  const driver = layer.drivers[String(options.driver)];
  if (driver === undefined) throw new BlockError(`Unknown driver '${String(options.driver)}'`);
  const settings = nodeSettings(layer, options, driver.name, driver.kind, inherited);
  const node = new BlockNode(layer, driver, settings);
  let opened = false;
  try {
    const context: OpenContext = {
      options,
      readOnly: settings.readOnly,
      autoReadOnly: settings.autoReadOnly,
      engine: layer.engine,
      engineOf: (kind) => layer.engineOf(kind),
      openChild: (name, roles, required) =>
        openChild(layer, node, options[name], name, roles, required, depth),
    };
    node.state = await driver.open(node, context);
    opened = true;
    try {
      await layer.graphLock.withRead((guard) => coRefreshLength(node, guard));
    } catch (error) {
      throw errnoError('Could not refresh total sector count', errnoOf(error));
    }
    for (const edge of node.children) {
      node.limits.requestAlignment = Math.max(
        node.limits.requestAlignment,
        edge.node.limits.requestAlignment,
      );
      node.limits.minMemAlignment = Math.max(node.limits.minMemAlignment, edge.node.limits.minMemAlignment);
    }
    driver.refreshLimits?.(node, node.limits);
    // What a node takes on its children may depend on the options its driver has read by now.
    await layer.graphLock.withWrite(() => refreshPermissions([node]));
    checkNameFree(layer, settings.name);
    layer.register(node);
  } catch (error) {
    await undoOpen(layer, node, opened);
    throw error;
  }
  return node;
}

async function undoOpen(layer: BlockLayer, node: BlockNode, opened: boolean): Promise<void> {
  if (opened) await node.driver.close?.(node);
  for (const edge of [...node.children].reverse()) {
    await layer.detachChild(edge);
    if (!edge.node.monitorOwned && edge.node.parents.length === 0) await layer.closeNode(edge.node);
  }
}

async function openChild(
  layer: BlockLayer,
  parent: BlockNode,
  reference: unknown,
  name: string,
  roles: number,
  required: boolean,
  depth: number,
): Promise<BlockChild | null> {
  if (reference === undefined || reference === null) {
    if (required) throw new BlockError(`A block device must be specified for "${name}"`);
    return null;
  }
  let node: BlockNode;
  if (typeof reference === 'string') {
    const found = layer.findNode(reference);
    if (found === null)
      throw new BlockError(`Cannot find device='${reference}' nor node-name='${reference}'`);
    node = found;
  } else {
    node = await openNode(layer, reference as DriverOptions, parent.settings, depth + 1);
  }
  try {
    // A parent without users takes nothing; what it takes later follows from theirs.
    return await layer.attachChild({ kind: 'node', node: parent }, name, roles, node, {
      perm: 0,
      shared: Perm.all,
    });
  } catch (error) {
    if (!node.monitorOwned && node.parents.length === 0) await layer.closeNode(node);
    throw error;
  }
}

function checkNameFree(layer: BlockLayer, name: string): void {
  if (layer.findNode(name) !== null) throw new BlockError(`Duplicate nodes with node-name='${name}'`);
}

function nodeSettings(
  layer: BlockLayer,
  options: DriverOptions,
  driverName: string,
  kind: string,
  inherited: Inherited | null,
): NodeSettings {
  const cache = options.cache as { readonly direct?: boolean; readonly 'no-flush'?: boolean } | undefined;
  if (cache !== undefined && Object.keys(cache).length === 0) {
    // The original's option parser keeps an empty dictionary as an option nobody knows.
    throw new BlockError(
      `Block ${kind === 'protocol' ? 'protocol' : 'format'} '${driverName}' doesn't support the option 'cache'`,
    );
  }
  const given = options['node-name'];
  if (given !== undefined) checkName(layer, String(given));
  const settings: NodeSettings = {
    name: given === undefined ? layer.generateName() : String(given),
    options: Object.fromEntries(Object.entries(options).filter(([key]) => !COMMON_OPTIONS.has(key))),
    readOnly: flag(options['read-only'], inherited?.readOnly),
    autoReadOnly: flag(options['auto-read-only'], inherited?.autoReadOnly),
    forceShare: flag(options['force-share'], inherited?.forceShare),
    discardUnmap: options.discard === undefined ? inherited !== null : options.discard === 'unmap',
    detectZeroes: (options['detect-zeroes'] as NodeSettings['detectZeroes'] | undefined) ?? 'off',
    cache: {
      direct: flag(cache?.direct, inherited?.cache.direct),
      noFlush: flag(cache?.['no-flush'], inherited?.cache.noFlush),
    },
  };
  if (settings.detectZeroes === 'unmap' && !settings.discardUnmap) {
    throw new BlockError(
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    );
  }
  if (settings.forceShare && !settings.readOnly) {
    throw new BlockError('force-share=on can only be used with read-only images');
  }
  return settings;
}

function flag(own: unknown, inherited: boolean | undefined): boolean {
  return typeof own === 'boolean' ? own : (inherited ?? false);
}

/** Node names: a letter, then letters, digits, '-', '.', '_'. */
function checkName(layer: BlockLayer, name: string): void {
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) throw new BlockError(`Invalid node-name: '${name}'`);
  checkNameFree(layer, name);
  if (Buffer.byteLength(name) > NODE_NAME_MAX) throw new BlockError('Node name too long');
}
