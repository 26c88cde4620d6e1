/** Children that the user adds to a node and removes again while requests run. */

import { BlockError } from '../../errors/error.ts';
import { changeGraph } from './change.ts';
import type { BlockNode } from './node.ts';

/** Makes `child`, which nobody uses yet, a child of `parent`. */
export async function addChild(parent: BlockNode, child: BlockNode): Promise<void> {
  const { childList } = parent.driver;
  if (childList === undefined)
    throw new BlockError(`The node ${parent.name} does not support adding a child`);
  await changeGraph(parent.layer, [parent, child], (graph) => {
    if (child.parents.length > 0) throw new BlockError(`The node ${child.name} already has a parent`);
    const { name, roles } = childList.checkAdd(parent);
    return graph.attach({ kind: 'node', node: parent }, name, roles, child);
  }).then((edge) => childList.added(parent, edge));
}

/** Takes the child of that name from `parent`; it is closed when nobody else holds it. */
export async function removeChild(parent: BlockNode, name: string): Promise<void> {
  const { childList } = parent.driver;
  const found = parent.child(name);
  if (found === null) throw new BlockError(`Node '${parent.name}' does not have child '${name}'`);
  if (childList === undefined)
    throw new BlockError(`The node ${parent.name} does not support removing a child`);
  await changeGraph(parent.layer, [parent], (graph) => {
    // Somebody else may have changed the children while requests were waited for.
    const edge = parent.child(name);
    if (edge === null) throw new BlockError(`Node '${parent.name}' does not have child '${name}'`);
    childList.checkRemove(parent, edge);
    graph.detach(edge);
    return edge;
  }).then((edge) => childList.removed(parent, edge));
}
