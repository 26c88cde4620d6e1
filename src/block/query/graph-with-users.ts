/** x-query-block-graph: nodes, everything that uses them, and what each edge is for. For who shows the graph to people. */

import type {
  XBlockGraph,
  XBlockGraphEdge,
  XBlockGraphMember,
  XBlockGraphRole,
} from '../../../schema/generated/types.ts';
import { inTurns } from '../../aio/host/turns.ts';
import { Role } from '../contract/request.ts';
import type { BlockChild, BlockNode, RootParent } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import { nodeFilename } from '../open/filename.ts';
import { nodesInOrder } from './query.ts';
import { permissionList } from './query-graph.ts';

const ROLE_NAMES = Object.keys(Role) as XBlockGraphRole[];

function roleList(bits: number): XBlockGraphRole[] {
  return ROLE_NAMES.filter((name) => (bits & Role[name]) !== 0);
}

function nodeMember(node: BlockNode, id: number): XBlockGraphMember {
  return {
    id,
    kind: 'node',
    name: node.name,
    driver: node.driver.name,
    filename: nodeFilename(node),
    size: node.totalBytes,
    'read-only': node.readOnly,
    'in-flight': node.inFlight,
    drained: node.quiesced,
  };
}

/**
 * `exportIds`: the exports by what they hold their nodes with. Users come first, then nodes, oldest first. A large graph
 * takes several turns, in which it does not change.
 */
export function graphWithUsers(
  layer: BlockLayer,
  exportIds: ReadonlyMap<RootParent, string>,
): Promise<XBlockGraph> {
  return layer.graphLock.withRead(() => inTurns(collect(layer, exportIds)));
}

function* collect(
  layer: BlockLayer,
  exportIds: ReadonlyMap<RootParent, string>,
): Generator<undefined, XBlockGraph> {
  const members: XBlockGraphMember[] = [];
  const edges: XBlockGraphEdge[] = [];
  const nodes = nodesInOrder(layer);
  const numbers = new Map(nodes.map((node, index) => [node, index + 1]));
  const addEdge = (parent: number, { name, node, roles, perm, shared }: BlockChild): void => {
    const child = numbers.get(node);
    // A node that is being opened or closed is no part of the graph.
    if (child === undefined) return;
    edges.push({
      parent,
      child,
      name,
      roles: roleList(roles),
      perm: permissionList(perm),
      'shared-perm': permissionList(shared),
    });
  };
  const users = new Map<string, number>();
  const userNumber = (kind: XBlockGraphMember['kind'], name: string, key: string): number => {
    const known = users.get(key);
    if (known !== undefined) return known;
    const id = nodes.length + users.size + 1;
    users.set(key, id);
    members.push({ id, kind, name });
    return id;
  };
  for (const [index, edge] of layer.rootEdges.entries()) {
    yield;
    if (edge.parent.kind !== 'root') continue;
    const { root } = edge.parent;
    const exportId = exportIds.get(root);
    // Jobs and exports may have the same names.
    if (root.jobId !== null) addEdge(userNumber('job', root.jobId, `job ${root.jobId}`), edge);
    else if (exportId !== undefined) addEdge(userNumber('export', exportId, `export ${exportId}`), edge);
    else addEdge(userNumber('user', '', `user ${index}`), edge);
  }
  for (const [node, id] of numbers) {
    yield;
    members.push(nodeMember(node, id));
    for (const edge of node.children) addEdge(id, edge);
  }
  return { members, edges };
}
