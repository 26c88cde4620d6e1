/**
 * Opening nodes: from the options of blockdev-add to a node in the graph.
 *
 * Options are plain data, validated against the schema. A child is given as the name of an existing node or as
 * inline options, to any depth. An inline child inherits cache modes, read-only, auto-read-only and force-share from
 * its parent where it does not set them itself; discards always reach it, because the parent decides about them.
 */

import { nextTurn } from '../../aio/host/turns.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, InvariantError, prefixed } from '../../errors/error.ts';
import type { BlockDriver, OpenContext, OpenPurpose } from '../contract/driver.ts';
import type { DriverFace } from '../contract/face.ts';
import type { ImplicitOpenGate } from '../contract/gate.ts';
import type { BackingName, DriverOptions } from '../contract/image.ts';
import { Role } from '../contract/request.ts';
import { changeGraph } from '../graph/change.ts';
import { findNode } from '../graph/find-node.ts';
import { coRefreshLength } from '../graph/length.ts';
import { type BlockChild, BlockNode, type NodeSettings, refreshLimits } from '../graph/node.ts';
import { refreshPermissions } from '../graph/permissions.ts';
import type { BlockLayer } from '../layer.ts';
import { isSameName } from './backing-image.ts';
import { passGate } from './gate.ts';
import { absoluteBackingName, placeOf, probeFormat, protocolOptions, protocolPrefix } from './image-name.ts';
import { checkDetectZeroes, recordOptions } from './options.ts';

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
  'active',
  'untrusted',
]);

type Inherited = Pick<
  NodeSettings,
  'readOnly' | 'autoReadOnly' | 'forceShare' | 'cache' | 'untrusted' | 'active'
> & {
  /** The image whose backing image is opened. */
  readonly overlay?: BlockNode;
};

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
  purpose: OpenPurpose = 'io',
): Promise<BlockNode> {
  if (depth > MAX_DEPTH) throw new BlockError('Block device nesting is too deep');
  const found = layer.driver(String(options.driver));
  // Whole drivers are taken within the turn.
  const driver = found instanceof Promise ? await found : found;
  if (driver === undefined) throw new BlockError(`Unknown driver '${String(options.driver)}'`);
  const given = options['node-name'];
  const checkName = (): void => {
    if (given !== undefined) checkNodeName(layer, String(given));
  };
  // The original opens `file` before it looks at the node's own name.
  const namesFileFirst = options.file !== undefined && driver.kind !== 'protocol';
  if (!namesFileFirst) checkName();
  const settings = nodeSettings(layer, options, driver, inherited);
  const node = new BlockNode(layer, driver, settings);
  node.overlay = inherited?.overlay ?? null;
  let opened = false;
  try {
    const context: OpenContext = {
      options,
      readOnly: settings.readOnly || !settings.active,
      autoReadOnly: settings.autoReadOnly,
      purpose,
      engine: layer.engine,
      engineOf: (kind) => layer.engineOf(kind),
      openChild: (name, roles, required, reference = options[name]) => {
        // The original opens `file` before the node itself gets its place, others after that.
        if (name !== 'file') {
          layer.order(node);
          return openChild(layer, node, { reference, name, roles, required, depth });
        }
        const opening = openChild(layer, node, { reference, name, roles, required, depth });
        if (!namesFileFirst) return opening;
        return opening.then(
          (edge) => {
            checkName();
            return edge;
          },
          (error: unknown) => {
            // A node that is there was found before, and is taken afterwards.
            if (typeof reference === 'string' && layer.findNode(reference) !== null) checkName();
            throw error;
          },
        );
      },
      openBacking: (imageDefault) => {
        layer.order(node);
        // What an image says of itself can be told without the images below it.
        return purpose === 'info' && options.backing === undefined
          ? Promise.resolve(null)
          : openBacking(layer, node, options.backing, imageDefault, depth);
      },
      openNamedChild: (name, roles, filename, probe = false) => {
        layer.order(node);
        return openNamedChild(layer, node, { name, roles, filename, depth, probe });
      },
    };
    node.state = await driver.open(node, context);
    opened = true;
    try {
      await layer.graphLock.withRead((guard) => coRefreshLength(node, guard));
    } catch (error) {
      throw errnoError('Could not refresh total sector count', errnoOf(error));
    }
    refreshLimits(node);
    // What a node takes on its children may depend on the options its driver has read by now.
    await layer.graphLock.withWrite(() => refreshPermissions([node]));
    recordOptions(node, options);
    await driver.afterOpen?.(node);
    checkNameFree(layer, settings.name);
    layer.register(node);
  } catch (error) {
    await undoOpen(layer, node, opened);
    throw error;
  }
  return node;
}

/** Never throws: the user is told why the node could not be opened, and what is left of it goes all the same. */
async function undoOpen(layer: BlockLayer, node: BlockNode, opened: boolean): Promise<void> {
  const regardless = async (step: () => Promise<void> | undefined): Promise<void> => {
    try {
      await step();
    } catch (error) {
      if (error instanceof InvariantError) throw error;
    }
  };
  if (opened) await regardless(() => node.driver.close?.(node));
  // All at once: what is left of the node must not ask for anything on what is left of its children.
  await regardless(() =>
    changeGraph(layer, [], (graph) => {
      for (const edge of [...node.children].reverse()) graph.detach(edge);
    }),
  );
}

interface ChildRequest {
  readonly reference: unknown;
  readonly name: string;
  readonly roles: number;
  readonly required: boolean;
  readonly depth: number;
  /** What an inline definition inherits; default: the parent's settings. */
  readonly inherited?: Inherited;
}

async function openChild(
  layer: BlockLayer,
  parent: BlockNode,
  { reference, name, roles, required, depth, inherited = parent.settings }: ChildRequest,
): Promise<BlockChild | null> {
  if (reference === undefined || reference === null) {
    if (required) throw new BlockError(`A block device must be specified for "${name}"`);
    return null;
  }
  let node: BlockNode;
  if (typeof reference === 'string') {
    node = findNode(layer, reference);
  } else {
    node = await openNode(layer, reference as DriverOptions, inherited, depth + 1);
    node.inheritsFrom = parent;
  }
  try {
    return await layer.attachChild({ kind: 'node', node: parent }, name, roles, node);
  } catch (error) {
    await layer.closeIfUnused(node);
    throw error;
  }
}

/** A backing image is read only, whatever its overlay is; the rest it inherits. */
async function openBacking(
  layer: BlockLayer,
  parent: BlockNode,
  given: unknown,
  image: BackingName | null,
  depth: number,
): Promise<BlockChild | null> {
  if (given === '')
    layer.report('warning: Use of "backing": "" is deprecated; use "backing": null instead\n');
  if (given === null || given === '' || (given === undefined && image === null)) return null;
  const { forceShare, cache, untrusted, active } = parent.settings;
  const inherited: Inherited = {
    ...{ readOnly: true, autoReadOnly: false, forceShare, cache, untrusted, active },
    overlay: parent,
  };
  const name = given === undefined ? absoluteBackingName(parent, image!.filename) : null;
  // Opening a chain waits for nothing: others have a turn between two images of it.
  await nextTurn();
  if (name !== null && backsItself(parent, name))
    throw new BlockError(`Backing file '${name}' creates an infinite loop.`, { errno: E.ELOOP });
  try {
    let reference = given;
    if (name !== null) {
      const gate = passGate(parent, 'backing file', name);
      ({ options: reference } = await namedByImage(gate, layer, name, image!.format, inherited));
    }
    return await openChild(layer, parent, {
      reference,
      name: 'backing',
      roles: Role.cow,
      required: false,
      depth,
      inherited,
    });
  } catch (error) {
    throw prefixed('Could not open backing file: ', error);
  }
}

/** What an untrusted image that is only described gets instead of a file that it names. */
const STAND_IN: DriverOptions = { driver: 'null-co', size: 2 ** 52, 'read-zeroes': true };

/** Whether the file of that name is the one of `node`, or of an image over it in the chain that is being opened. */
function backsItself(node: BlockNode, name: string): boolean {
  for (let at: BlockNode | null = node; at !== null; at = at.overlay) {
    const place = placeOf(at);
    if (place !== null && isSameName(place, name)) return true;
  }
  return false;
}

/** The name is taken as it is: unlike a backing file's it is relative to the working directory, as in the original. */
async function openNamedChild(
  layer: BlockLayer,
  parent: BlockNode,
  request: {
    readonly name: string;
    readonly roles: number;
    readonly filename: string;
    readonly depth: number;
    readonly probe: boolean;
  },
): Promise<BlockChild> {
  const what = request.name.replaceAll('-', ' ');
  if (parent.settings.untrusted && layer.refusals !== null) {
    layer.refusals.push({ what, filename: request.filename });
    return (await openChild(layer, parent, { ...request, reference: STAND_IN, required: true }))!;
  }
  // Unlike the name of a backing file this one is relative to the working directory, as in the original.
  const gate = passGate(parent, what, request.filename);
  const { options: reference, probed } = request.probe
    ? await namedByImage(gate, layer, request.filename, null, parent.settings)
    : { options: protocolOptions(layer, request.filename), probed: false };
  const child = await openChild(layer, parent, { ...request, reference, required: true });
  if (probed) child!.node.driver.wasProbed?.(child!.node);
  return child!;
}

/** Options of a node that only an image names. */
function namedByImage(
  _gate: ImplicitOpenGate,
  layer: BlockLayer,
  name: string,
  format: string | null,
  inherited: Inherited,
): Promise<ImageOptions> {
  return imageOptions(layer, name, format, inherited);
}

/** Opens the image `name` as the tools do: a pseudo-protocol name or a path, the format given or probed. */
export async function openImage(
  layer: BlockLayer,
  name: string,
  format: string | null,
  settings: DriverOptions,
  purpose: OpenPurpose = 'io',
): Promise<BlockNode> {
  if (settings.untrusted === true && format === null && protocolPrefix(name) !== 'json')
    throw new BlockError('The format of an untrusted image must be given', { errno: E.EACCES });
  const { options, probed } = await imageOptions(layer, name, format, {
    readOnly: settings['read-only'] === true,
    autoReadOnly: false,
    forceShare: settings['force-share'] === true,
    cache: { direct: false, noFlush: false },
    active: true,
    untrusted: settings.untrusted === true,
  });
  const node = await openNode(layer, { ...settings, ...options }, null, 0, purpose);
  if (probed) node.driver.wasProbed?.(node);
  return node;
}

/** Opens a node from complete options; the caller owns it (a backend must be put on it, or it closed). */
export function openFromOptions(
  layer: BlockLayer,
  options: DriverOptions,
  purpose: OpenPurpose = 'io',
): Promise<BlockNode> {
  return openNode(layer, options, null, 0, purpose);
}

interface ImageOptions {
  readonly options: DriverOptions;
  /** The format was found out by looking at the content. */
  readonly probed: boolean;
}

/** Options of the node that the image name stands for: the format given, named in json:, or probed. */
async function imageOptions(
  layer: BlockLayer,
  name: string,
  format: string | null,
  inherited: Inherited,
): Promise<ImageOptions> {
  const own = await nameOptions(layer, name, inherited);
  const ownDriver = layer.drivers[String(own.driver)];
  if (ownDriver !== undefined && !isProtocol(ownDriver)) return { options: own, probed: false };
  const { driver, ...rest } = own;
  const file = driver === undefined ? own : { driver, ...rest };
  if (format !== null) {
    const known = layer.drivers[format];
    if (known === undefined) throw new BlockError(`Unknown driver '${format}'`);
    const options = isProtocol(known) ? namedProtocol(known, own, name) : { driver: format, file };
    return { options, probed: false };
  }
  const node = await openNode(layer, file, { ...inherited, readOnly: true }, 0);
  try {
    return { options: { driver: await probed(node), file }, probed: true };
  } finally {
    await layer.closeNode(node);
  }
}

/** Options of the node that the name stands for; those of json: may leave much out. */
async function nameOptions(layer: BlockLayer, name: string, inherited: Inherited): Promise<DriverOptions> {
  const own = protocolOptions(layer, name);
  if (protocolPrefix(name) !== 'json') return own;
  const { forceShare, cache } = inherited;
  const settings = {
    'force-share': forceShare,
    cache: { direct: cache.direct, 'no-flush': cache.noFlush },
  };
  return await layer.definitions.complete(layer, own, settings);
}

async function probed(node: BlockNode): Promise<string> {
  try {
    return await probeFormat(node);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw errnoError('Could not read image for determining its format', error.errno);
  }
}

/** The node of the protocol that the user has named for `name`, which may be another's by itself (`own`). */
export function namedProtocol(driver: DriverFace, own: DriverOptions, name: string): DriverOptions {
  const [option] = driver.nameOptions ?? [];
  if (own.driver === driver.name) return own;
  if (option === undefined && driver.parseName !== undefined)
    return { driver: driver.name, ...driver.parseName(name, '') };
  if (option === undefined) return { ...own, driver: driver.name };
  return { driver: driver.name, [option]: name };
}

/** Whether a format goes on top: the node shows bytes that somebody else keeps, as they are. */
function isProtocol(driver: DriverFace): boolean {
  return driver.kind === 'protocol' || driver.isProtocolFilter === true;
}

function checkNameFree(layer: BlockLayer, name: string): void {
  if (layer.findNode(name) !== null) throw new BlockError(`Duplicate nodes with node-name='${name}'`);
}

function nodeSettings(
  layer: BlockLayer,
  options: DriverOptions,
  driver: BlockDriver,
  inherited: Inherited | null,
): NodeSettings {
  const cache = options.cache as { readonly direct?: boolean; readonly 'no-flush'?: boolean } | undefined;
  if (cache !== undefined && Object.keys(cache).length === 0) {
    // The original's option parser keeps an empty dictionary as an option nobody knows.
    throw new BlockError(
      isProtocol(driver)
        ? `Block protocol '${driver.name}' doesn't support the option 'cache'`
        : `Block format '${driver.name}' does not support the option 'cache'`,
    );
  }
  const given = options['node-name'];
  const settings: NodeSettings = {
    name: given === undefined ? layer.generateName() : String(given),
    options: Object.fromEntries(Object.entries(options).filter(([key]) => !COMMON_OPTIONS.has(key))),
    readOnly: flag(options['read-only'], inherited?.readOnly),
    autoReadOnly: flag(options['auto-read-only'], inherited?.autoReadOnly),
    forceShare: flag(options['force-share'], inherited?.forceShare),
    active: typeof options.active === 'boolean' ? options.active : (inherited?.active ?? true),
    untrusted: flag(options.untrusted, inherited?.untrusted),
    discardUnmap: options.discard === undefined ? inherited !== null : options.discard === 'unmap',
    detectZeroes: (options['detect-zeroes'] as NodeSettings['detectZeroes'] | undefined) ?? 'off',
    cache: {
      direct: flag(cache?.direct, inherited?.cache.direct),
      noFlush: flag(cache?.['no-flush'], inherited?.cache.noFlush),
    },
  };
  checkDetectZeroes(settings);
  if (settings.forceShare && !settings.readOnly) {
    throw new BlockError('force-share=on can only be used with read-only images');
  }
  return settings;
}

function flag(own: unknown, inherited: boolean | undefined): boolean {
  return typeof own === 'boolean' ? own : (inherited ?? false);
}

/** Throws unless a new node may be given the name. Node names: a letter, then letters, digits, '-', '.', '_'. */
export function checkNodeName(layer: BlockLayer, name: string): void {
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) throw new BlockError(`Invalid node-name: '${name}'`);
  checkNameFree(layer, name);
  if (Buffer.byteLength(name) > NODE_NAME_MAX) throw new BlockError('Node name too long');
}
