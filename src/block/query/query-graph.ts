/** x-debug-query-block-graph: everything that uses nodes, and what it uses. In the original's order. */

import type {
  BlockPermission,
  XDbgBlockGraph,
  XDbgBlockGraphEdge,
  XDbgBlockGraphNode,
} from '../../../schema/generated/types.ts';
import { atOnce, inTurns } from '../../aio/host/turns.ts';
import { Perm } from '../contract/request.ts';
import type { BlockChild } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import { nodesInOrder } from './query.ts';

const NAMES: readonly (readonly [number, BlockPermission])[] = [
  [Perm.resize, 'resize'],
  [Perm.writeUnchanged, 'write-unchanged'],
  [Perm.write, 'write'],
  [Perm.consistentRead, 'consistent-read'],
];

/** Names of permission bits. */
export function permissionList(bits: number): BlockPermission[] {
  return NAMES.filter(([bit]) => (bits & bit) !== 0).map(([, name]) => name);
}

/** Numbers are given to members as they are met; lists are in reverse. */
class GraphWriter {
  readonly nodes: XDbgBlockGraphNode[] = [];
  readonly edges: XDbgBlockGraphEdge[] = [];
  readonly #ids = new Map<object, number>();

  #idOf(member: object): number {
    const known = this.#ids.get(member);
    if (known !== undefined) return known;
    const id = this.#ids.size + 1;
    this.#ids.set(member, id);
    return id;
  }

  /** `children` oldest first. */
  add(member: object, type: XDbgBlockGraphNode['type'], name: string, children: readonly BlockChild[]): void {
    const id = this.#idOf(member);
    this.nodes.push({ id, type, name });
    for (const edge of children.toReversed()) {
      this.edges.push({
        parent: id,
        child: this.#idOf(edge.node),
        name: edge.name,
        perm: permissionList(edge.perm),
        'shared-perm': permissionList(edge.shared),
      });
    }
  }
}

/** The whole graph, for people and tests. A large one takes several turns, in which it does not change. */
export function blockGraph(layer: BlockLayer): Promise<XDbgBlockGraph> {
  return layer.graphLock.withRead(() => inTurns(collect(layer)));
}

/** The same at once, whoever holds the graph: for a look at what hangs. */
export function blockGraphNow(layer: BlockLayer): XDbgBlockGraph {
  return atOnce(collect(layer));
}

function* collect(layer: BlockLayer): Generator<undefined, XDbgBlockGraph> {
  const writer = new GraphWriter();
  const jobs = new Map<string, BlockChild[]>();
  for (const edge of layer.rootEdges) {
    yield;
    const jobId = edge.parent.kind === 'root' ? edge.parent.root.jobId : null;
    if (jobId === null) writer.add(edge, 'block-backend', '', [edge]);
    else jobs.set(jobId, [...(jobs.get(jobId) ?? []), edge]);
  }
  for (const [id, edges] of [...jobs].reverse()) writer.add(edges, 'block-job', id, edges);
  for (const node of nodesInOrder(layer)) {
    yield;
    writer.add(node, 'block-driver', node.name, node.children);
  }
  return { nodes: writer.nodes.reverse(), edges: writer.edges.reverse() };
}
