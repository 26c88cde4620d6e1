/**
 * Reopening: nodes that are open get other options, all of them or none.
 *
 * What a node was not given again goes back to its default. A child that was defined inline is reopened with its
 * parent: it gets the options given for it there and inherits the rest; when it is only named, it keeps what it was
 * given. Then every node is prepared, and the graph is changed as a whole.
 *
 * Invariants: the nodes are drained from before the first driver is asked until the end; a failure leaves options,
 * edges, permissions and drivers as they were.
 */

import { BlockError } from '../../errors/error.ts';
import { writeOrder } from '../../errors/member-order.ts';
import type { DriverOptions, FlatOptions } from '../contract/image.ts';
import { Role } from '../contract/request.ts';
import { changeGraph, type GraphChange } from '../graph/change.ts';
import { drainedBeginAll } from '../graph/drain.ts';
import { findNode } from '../graph/find-node.ts';
import { type BlockChild, type BlockNode, type NodeSettings, refreshLimits } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import {
  checkDetectZeroes,
  flatten,
  inheritedOptions,
  inside,
  isCommonMutable,
  isNeverSame,
  isOfChild,
  mayChange,
  mayLeaveOut,
  pick,
  reopenedSettings,
} from './options.ts';

/** What is to become of one node. */
interface Reopening {
  readonly node: BlockNode;
  /** What the user gave, children's references included; the options of children defined inline are theirs. */
  given: FlatOptions;
  /** With what is inherited or kept. */
  inEffect: FlatOptions;
  /** Something was said of the backing image, or need not be, because the node keeps what is not given. */
  knowsBacking: boolean;
  settings: NodeSettings;
  /** The children that change. */
  readonly children: Map<string, BlockNode | null>;
  prepared: unknown;
}

type Queue = Map<BlockNode, Reopening>;

/** blockdev-reopen. Options are those of blockdev-add; throws with everything as it was. */
export async function reopenNodes(layer: BlockLayer, list: readonly DriverOptions[]): Promise<void> {
  const queue: Queue = new Map();
  for (const options of list) {
    const name = options['node-name'];
    if (name === undefined) throw new BlockError('node-name not specified');
    const node = layer.findNode(String(name));
    if (node === null) throw new BlockError(`Failed to find node with node-name='${String(name)}'`);
    enqueue(queue, node, { given: flatten(options), inherited: null, keeps: false });
  }
  await reopenQueue(layer, [...queue.values()]);
}

/** Gives a node other values for some of its options; the others stay, also those of its children. */
export async function changeOptions(node: BlockNode, given: FlatOptions): Promise<void> {
  const queue: Queue = new Map();
  enqueue(queue, node, { given, inherited: null, keeps: true });
  await reopenQueue(node.layer, [...queue.values()]);
}

// ---- what is to be reopened ----------------------------------------------------------------------------------

interface Request {
  readonly given: FlatOptions;
  readonly inherited: FlatOptions | null;
  /** What is not given stays as it is, instead of going back to its default. */
  readonly keeps: boolean;
}

function enqueue(queue: Queue, node: BlockNode, { given, inherited, keeps }: Request): void {
  const queued = queue.get(node);
  const before = queued?.given ?? (keeps ? node.optionsGiven : {});
  const own = { ...before, ...pick(given, (name) => !isOfInlineChild(node, given, name)) };
  const inEffect = { ...(keeps ? node.optionsInEffect : {}), ...inherited, ...own };
  const reopening: Reopening = queued ?? {
    node,
    given: own,
    inEffect,
    knowsBacking: false,
    settings: node.settings,
    children: new Map(),
    prepared: undefined,
  };
  reopening.given = own;
  reopening.inEffect = inEffect;
  reopening.knowsBacking ||= keeps || 'backing' in given || 'backing.driver' in given;
  reopening.settings = reopenedSettings(node, inEffect, inherited !== null);
  queue.set(node, reopening);
  for (const edge of node.children) {
    if (edge.node.inheritsFrom !== node) continue;
    const reference = given[edge.name];
    if (reference !== undefined && reference !== edge.node.name) continue;
    enqueue(queue, edge.node, {
      given: inside(given, edge.name),
      inherited: inheritedOptions(inEffect, edge.roles),
      keeps: reference !== undefined || keeps,
    });
  }
}

/** Whether the option is one of a child that the node defines inline. */
function isOfInlineChild(node: BlockNode, given: FlatOptions, name: string): boolean {
  return node.children.some(
    (edge) =>
      edge.node.inheritsFrom === node && given[edge.name] === undefined && name.startsWith(`${edge.name}.`),
  );
}

// ---- all or nothing ------------------------------------------------------------------------------------------

async function reopenQueue(layer: BlockLayer, queue: readonly Reopening[]): Promise<void> {
  const nodes = queue.map(({ node }) => node);
  // Jobs come to their ends and exports go away while drivers are asked: what is meant must not be closed meanwhile.
  const held = nodes.concat(queue.flatMap(({ given }) => namedChildren(layer, given)));
  for (const node of held) layer.hold(node);
  const section = await drainedBeginAll(nodes);
  const prepared: Reopening[] = [];
  try {
    try {
      for (const reopening of queue) {
        await prepare(layer, reopening, prepared);
        prepared.push(reopening);
      }
      await changeGraph(layer, touchedNodes(queue), (graph) => {
        for (const reopening of queue) apply(graph, reopening);
      });
    } catch (error) {
      for (const { node, prepared: what } of prepared.reverse()) await node.driver.reopenAbort?.(node, what);
      throw error;
    }
    for (const { node, prepared: what } of queue.toReversed()) await node.driver.afterReopen?.(node, what);
  } finally {
    section.end();
    for (const node of held.reverse()) await layer.release(node);
  }
}

function namedChildren(layer: BlockLayer, given: FlatOptions): BlockNode[] {
  const names = ['backing', 'file'].map((name) => given[name]).filter((name) => typeof name === 'string');
  return names.map((name) => layer.findNode(name)).filter((node) => node !== null);
}

function touchedNodes(queue: readonly Reopening[]): BlockNode[] {
  const nodes = new Set(queue.map(({ node }) => node));
  for (const { node, children } of queue) {
    for (const [name, child] of children) {
      const old = node.child(name)?.node;
      if (old !== undefined) nodes.add(old);
      if (child !== null) nodes.add(child);
    }
  }
  return [...nodes];
}

/** Checks everything about one node, in the original's order, and gets its driver ready. `before`: those done already. */
async function prepare(layer: BlockLayer, reopening: Reopening, before: readonly Reopening[]): Promise<void> {
  const { node, settings } = reopening;
  const { driver } = node;
  checkDetectZeroes(settings);
  if (driver.reopenPrepare === undefined) {
    throw new BlockError(
      `Block format '${driver.name}' used by node '${node.name}' does not support reopening files`,
    );
  }
  checkLeftOut(reopening);
  for (const name of ['backing', 'file']) findNewChild(layer, reopening, name);
  reopening.prepared = await driver.reopenPrepare(node, {
    options: settings.options,
    settings,
    child: (name) => reopening.children.get(name) ?? node.child(name)?.node ?? null,
  });
  try {
    checkChildren(reopening, before);
    checkUnchanged(reopening);
  } catch (error) {
    await driver.reopenAbort?.(node, reopening.prepared);
    throw error;
  }
}

/** Throws when an option is missing that cannot go back to its default. */
function checkLeftOut({ node, inEffect }: Reopening): void {
  for (const name of writeOrder(Object.keys(node.optionsInEffect))) {
    if (name in inEffect || name === 'node-name' || isCommonMutable(name) || mayLeaveOut(node.driver, name))
      continue;
    throw new BlockError(`Option '${name}' cannot be reset to its default value`);
  }
}

/** Finds the node that the user names as the child; a child that stays is none. */
function findNewChild(layer: BlockLayer, reopening: Reopening, name: string): void {
  const { node, given, children } = reopening;
  const reference = given[name];
  const old = node.child(name)?.node ?? null;
  if (reference === null) {
    if (name === 'backing' && old !== null) children.set(name, null);
    return;
  }
  if (typeof reference !== 'string') return;
  const found = layer.findNode(reference);
  if (found !== null && found !== old && !isImplicitlyAbove(old, found)) children.set(name, found);
}

/** Whether `found` is what `old` shows through filters that nobody asked for. */
function isImplicitlyAbove(old: BlockNode | null, found: BlockNode): boolean {
  let at = old;
  while (at?.implicit === true) at = at.primaryChild?.node ?? null;
  return at === found;
}

/** Throws when a child that is given cannot be one, or one that must be given is not. */
function checkChildren(
  { node, given, knowsBacking, children }: Reopening,
  before: readonly Reopening[],
): void {
  const { driver } = node;
  const hasBacking = node.child('backing') !== null || (driver.backingName?.(node) ?? null) !== null;
  if (driver.supportsBacking === true && !knowsBacking && hasBacking)
    throw new BlockError(`backing is missing for '${node.name}'`);
  for (const name of ['backing', 'file']) {
    const reference = given[name];
    if (typeof reference !== 'string') continue;
    findNode(node.layer, reference, '');
    const child = children.get(name);
    if (child === undefined || child === null) continue;
    if (willBeBelow(child, node, before)) {
      throw new BlockError(`Making '${child.name}' a ${name} child of '${node.name}' would create a cycle`);
    }
    if (name === 'backing' && driver.supportsBacking !== true) {
      throw new BlockError(`Driver '${driver.name}' of node '${node.name}' does not support backing files`);
    }
    const old = node.child(name)?.node;
    if (old?.implicit === true) throw new BlockError(`Cannot replace implicit ${name} child of ${node.name}`);
  }
}

/** Whether `node` is `top` or below it when what is in `before` has been done. */
function willBeBelow(top: BlockNode, node: BlockNode, before: readonly Reopening[]): boolean {
  if (top === node) return true;
  const changed = before.find((other) => other.node === top)?.children;
  const kept = top.children.filter(({ name }) => changed?.has(name) !== true).map((edge) => edge.node);
  return [...kept, ...(changed?.values() ?? [])].some(
    (child) => child !== null && willBeBelow(child, node, before),
  );
}

/** Throws when an option has another value that cannot have one. */
function checkUnchanged({ node, inEffect }: Reopening): void {
  for (const name of writeOrder(Object.keys(inEffect))) {
    if (isCommonMutable(name) || mayChange(node.driver, name)) continue;
    const value = inEffect[name];
    if (name === 'backing' || (name === 'file' && typeof value === 'string')) continue;
    if (node.child(name)?.node.name === value) continue;
    if (!isNeverSame(node.driver, name) && isSame(node.optionsInEffect[name], value)) continue;
    throw new BlockError(`Cannot change the option '${name}'`);
  }
}

function isSame(before: unknown, value: unknown): boolean {
  return before === value || (typeof before === 'object' && JSON.stringify(before) === JSON.stringify(value));
}

/** The change itself, inside the graph change. */
function apply(graph: GraphChange, reopening: Reopening): void {
  const { node, settings, children } = reopening;
  const before = {
    settings: node.settings,
    readOnly: node.readOnly,
    given: node.optionsGiven,
    inEffect: node.optionsInEffect,
  };
  graph.also({
    undo: () => {
      node.settings = before.settings;
      node.readOnly = before.readOnly;
      node.turnsReadOnly = false;
      node.optionsGiven = before.given;
      node.optionsInEffect = before.inEffect;
    },
    commit: () => {
      node.turnsReadOnly = false;
      node.driver.reopenCommit?.(node, reopening.prepared);
      refreshLimits(node);
    },
  });
  for (const [name, child] of children) changeChild(graph, node, name, child);
  node.settings = withChildren(settings, reopening);
  node.turnsReadOnly = settings.readOnly && !node.readOnly;
  node.readOnly = settings.readOnly;
  const isOwn = (name: string): boolean =>
    name !== 'backing' && !isOfChild(node, name) && !(name === 'file' && children.has(name));
  node.optionsGiven = pick(reopening.given, isOwn);
  node.optionsInEffect = pick(reopening.inEffect, isOwn);
  graph.refresh(node);
}

/** What the user said of children stays known beside the driver's options, as after opening. */
function withChildren(settings: NodeSettings, { node, given, children }: Reopening): NodeSettings {
  const backing = 'backing' in given ? given.backing : node.settings.options.backing;
  const changed = children.size > 0 || 'backing' in given;
  const kept = pick(settings.options, (name) => name !== 'backing');
  return changed || backing !== undefined ? { ...settings, options: { ...kept, backing } } : settings;
}

function changeChild(graph: GraphChange, node: BlockNode, name: string, child: BlockNode | null): void {
  const edge: BlockChild | null = node.child(name);
  if (edge !== null && edge.node.inheritsFrom === node) {
    const old = edge.node;
    old.inheritsFrom = null;
    graph.also({
      undo: () => {
        old.inheritsFrom = node;
      },
    });
  }
  if (edge === null && child !== null) graph.attach({ kind: 'node', node }, name, Role.cow, child);
  else if (edge !== null && child === null) graph.detach(edge);
  else if (edge !== null && child !== null) graph.redirect(edge, child);
}
