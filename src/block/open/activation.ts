/**
 * Active and inactive nodes: images are handed over from one process to another, as in the migration of a machine.
 *
 * An inactive node holds no lock of its image, writes nothing, and lets nobody write. Reads are answered, by whatever
 * its driver knew of the image when the node became inactive. What a format has in memory is therefore read anew when
 * the node is activated: another process may have written the image meanwhile.
 *
 * A node is inactivated before the nodes that it uses, and activated after them: an active node uses active ones only.
 */

import { BlockError } from '../../errors/error.ts';
import { releaseBitmap } from '../bitmaps/dirty-bitmap.ts';
import type { OpenContext } from '../contract/driver.ts';
import { changeGraph } from '../graph/change.ts';
import { drainedBegin } from '../graph/drain.ts';
import { coRefreshLength } from '../graph/length.ts';
import { type BlockChild, type BlockNode, refreshLimits } from '../graph/node.ts';
import { wrapped } from '../io/callbacks.ts';
import type { BlockLayer } from '../layer.ts';

/** blockdev-set-active for all nodes. Goes on until the first that cannot be. */
export async function setAllActive(layer: BlockLayer, active: boolean): Promise<void> {
  for (const node of layer.nodes) {
    if (active) await activate(node);
    else if (activeParent(node) === null) await inactivate(node);
  }
}

/**
 * Activates a node, and before it what it uses. Throws when others hold the image, or it cannot be read; what has been
 * activated for it is inactive again then.
 */
export async function activate(node: BlockNode): Promise<void> {
  const activated: BlockNode[] = [];
  try {
    await activateUpTo(node, activated);
  } catch (error) {
    for (const each of activated.reverse()) await inactivate(each).catch(() => undefined);
    throw error;
  }
}

async function activateUpTo(node: BlockNode, activated: BlockNode[]): Promise<void> {
  if (node.active) return;
  for (const { node: below } of node.children) await activateUpTo(below, activated);
  const section = await drainedBegin(node);
  try {
    await takeBack(node);
  } finally {
    section.end();
  }
  activated.push(node);
}

/** Inactivates a node, and after it what only it uses. Throws, before anything has changed, when it is in use. */
export async function inactivate(node: BlockNode): Promise<void> {
  if (!node.active) return;
  const parent = activeParent(node);
  if (parent !== null)
    throw new BlockError(`Node '${node.name}' is used by the active node '${parent.name}'`);
  const nodes = withOwnChildren(node);
  for (const each of nodes) checkUsers(each);
  for (const each of nodes) {
    const section = await drainedBegin(each);
    try {
      await handOver(each);
    } finally {
      section.end();
    }
  }
}

/** The node, and below it what no other active node uses; parents before children. */
function withOwnChildren(top: BlockNode): BlockNode[] {
  const nodes: BlockNode[] = [top];
  for (let at = 0; at < nodes.length; at++) {
    for (const { node } of nodes[at]!.children) {
      const isOwn = node.parents.every(
        ({ parent }) => parent.kind === 'root' || !parent.node.active || nodes.includes(parent.node),
      );
      if (isOwn && node.active && !nodes.includes(node)) nodes.push(node);
    }
  }
  return nodes;
}

function activeParent(node: BlockNode): BlockNode | null {
  for (const { parent } of node.parents) if (parent.kind === 'node' && parent.node.active) return parent.node;
  return null;
}

function checkUsers(node: BlockNode): void {
  if (node.parents.some(({ parent }) => parent.kind === 'root' && !parent.root.allowsInactive))
    throw new BlockError(`Node '${node.name}' is in use`);
  const busy = [...node.dirtyBitmaps.all].find((bitmap) => bitmap.persistent && bitmap.busy);
  if (busy !== undefined) throw new BlockError(`Bitmap '${busy.name}' of node '${node.name}' is in use`);
}

/** Whether the driver keeps what it has read of the image. Filters and protocols do not, nor does raw, which is told how it was found. */
function hasMetadata({ driver }: BlockNode): boolean {
  return driver.kind === 'format' && driver.wasProbed === undefined;
}

/** Everything is written, and the lock given up. The node is drained. */
async function handOver(node: BlockNode): Promise<void> {
  await wrapped.flush(node);
  if (hasMetadata(node)) await closeState(node);
  await setFlag(node, false);
  if (hasMetadata(node)) await openState(node);
}

/** The lock is taken, and the image read anew. On an error the node is inactive as before. The node is drained. */
async function takeBack(node: BlockNode): Promise<void> {
  // While it is read-only: there is nothing to write.
  if (hasMetadata(node)) await closeState(node);
  try {
    await setFlag(node, true);
  } catch (error) {
    if (hasMetadata(node)) await openState(node);
    throw error;
  }
  try {
    // What has been active all the time does not know either how long its file has become.
    await refreshLengthsBelow(node);
    if (hasMetadata(node)) await openState(node);
    await refreshLength(node);
    refreshLimits(node);
    await changeGraph(node.layer, [], (graph) => graph.refresh(node));
    await node.driver.afterOpen?.(node);
  } catch (error) {
    await setFlag(node, false);
    if (hasMetadata(node)) await openState(node).catch(() => undefined);
    throw error;
  }
}

async function refreshLengthsBelow({ children }: BlockNode): Promise<void> {
  for (const { node } of children) {
    await refreshLengthsBelow(node);
    await refreshLength(node);
  }
}

async function refreshLength(node: BlockNode): Promise<void> {
  const before = node.totalBytes;
  await node.layer.graphLock.withRead((guard) => coRefreshLength(node, guard));
  if (node.totalBytes === before) return;
  for (const { parent } of node.parents) if (parent.kind === 'root') parent.root.resized();
}

/** Sets the state and takes or gives up locks; when they are refused all is as before. */
function setFlag(node: BlockNode, active: boolean): Promise<void> {
  const before = { active: node.active, readOnly: node.readOnly };
  return changeGraph(node.layer, [], (graph) => {
    graph.also({ undo: () => Object.assign(node, before) });
    node.active = active;
    node.readOnly = node.settings.readOnly || !active;
    graph.refresh(node);
  });
}

/** What the driver has in memory goes to the image, as far as it may be written to. */
async function closeState(node: BlockNode): Promise<void> {
  await node.driver.close?.(node);
  // They are in the image.
  for (const bitmap of [...node.dirtyBitmaps.all]) if (bitmap.persistent) releaseBitmap(bitmap);
}

/** Reads the image with the options and the children that the node has. */
async function openState(node: BlockNode): Promise<void> {
  const { layer, settings } = node;
  const child = async (name: string): Promise<BlockChild | null> => node.child(name);
  const context: OpenContext = {
    options: settings.options,
    readOnly: node.readOnly,
    autoReadOnly: settings.autoReadOnly,
    purpose: 'io',
    engine: layer.engine,
    engineOf: (kind) => layer.engineOf(kind),
    openChild: child,
    openBacking: () => child('backing'),
    openNamedChild: async (name) => {
      const edge = node.child(name);
      if (edge === null) throw new BlockError(`Node '${node.name}' has no '${name}' child`);
      return edge;
    },
  };
  node.state = await node.driver.open(node, context);
}
