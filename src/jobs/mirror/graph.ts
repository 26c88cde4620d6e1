/**
 * The graph around a mirror job: its filter goes on top of the source, its edges hold what it works with, and in the
 * end the target takes the source's place, or all is as before.
 *
 * Each of these is one graph change: nobody ever sees half of it, and when it is refused the graph is as it was.
 */

import type { DirtyBitmap } from '../../block/dirty-bitmap.ts';
import { Perm, type PermissionPair } from '../../block/driver.ts';
import {
  changeGraph,
  type GraphChange,
  makeNode,
  putOnTop,
  redirectParents,
} from '../../block/graph-change.ts';
import type { BlockChild, BlockNode, RootParent } from '../../block/node.ts';
import { type MirrorTopNode, mirrorTop } from '../../drivers/filters/mirror-top.ts';
import { activeWrites } from './active.ts';
import type { CopyMode, Mirror } from './state.ts';

/** The source keeps its size, and others use it as they like; what is read of it goes by the filter's edge. */
const KEEP: PermissionPair = { perm: 0, shared: Perm.all & ~Perm.resize };
const READ: PermissionPair = { perm: Perm.consistentRead, shared: Perm.all & ~Perm.resize };
const NOTHING: PermissionPair = { perm: 0, shared: Perm.all };
/** Nobody else may even read the target: it is in no state to be read. */
const WRITE: PermissionPair = { perm: Perm.write, shared: Perm.writeUnchanged };

/** Who holds the edges: the job itself, and the backend by which it writes to the target. */
export interface EdgeOwners {
  readonly job: RootParent;
  readonly backend: RootParent;
}

export interface MirrorGraph {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly filter: MirrorTopNode;
  readonly edges: readonly BlockChild[];
}

/** Puts a filter on the source; `name` null: it gets one. The caller attaches an edge to it, or removes it. */
export async function insertFilter(source: BlockNode, name: string | null): Promise<MirrorTopNode> {
  const { layer } = source;
  const filter = makeNode(layer, mirrorTop, { name, readOnly: source.readOnly, state: { writes: null } });
  const node = filter as unknown as BlockNode;
  try {
    await changeGraph(layer, [source, node], (graph) => putOnTop(graph, node, source, { name: 'backing' }));
  } catch (error) {
    await layer.closeIfUnused(node);
    throw error;
  }
  return filter;
}

/** Takes what the job needs of its nodes, or throws and takes nothing. */
export async function attachEdges(
  source: BlockNode,
  target: BlockNode,
  filter: MirrorTopNode,
  { job, backend }: EdgeOwners,
): Promise<MirrorGraph> {
  const top = filter as unknown as BlockNode;
  const edges = await changeGraph(source.layer, [], (graph) => {
    const attach = (root: RootParent, name: string, node: BlockNode, pair: PermissionPair): BlockChild =>
      graph.attach({ kind: 'root', root }, name, 0, node, pair);
    return [
      attach(backend, 'root', target, WRITE),
      attach(job, 'main node', top, READ),
      attach(job, 'source', source, KEEP),
      attach(job, 'target', target, NOTHING),
    ];
  });
  return { source, target, filter, edges };
}

/** The filter goes: its users have what is below it. */
function removeFilter(graph: GraphChange, filter: MirrorTopNode): void {
  const top = filter as unknown as BlockNode;
  const below = filter.children[0]!;
  redirectParents(graph, top, below.node);
  graph.detach(below);
}

/** Ends it all: the graph is as if there had been no job. `edges` may be none, when there was not even one. */
export async function dismantle(graph: Pick<MirrorGraph, 'source' | 'filter' | 'edges'>): Promise<void> {
  const { source, filter, edges } = graph;
  const top = filter as unknown as BlockNode;
  await changeGraph(source.layer, [source, top], (change) => {
    for (const edge of edges) change.detach(edge);
    removeFilter(change, filter);
  });
  await source.layer.closeIfUnused(top);
}

/**
 * The target takes the place of `replaced` (the source, or another node with the same content), and the filter goes.
 * Source and target are the same and stay so: the caller has drained both.
 */
export async function pivot(graph: MirrorGraph, replaced: BlockNode): Promise<void> {
  const { source, target, filter, edges } = graph;
  const top = filter as unknown as BlockNode;
  await changeGraph(source.layer, [source, top, target, replaced], (change) => {
    for (const edge of edges) change.detach(edge);
    redirectParents(change, replaced, target);
    removeFilter(change, filter);
  });
  await source.layer.closeIfUnused(top);
}

/** Changes who does the users' writes. No copy is under way, and the job does not mind being drained. */
export async function setCopyMode(mirror: Mirror, mode: CopyMode): Promise<void> {
  const { filter, bitmap, copyMode } = mirror;
  const set = (to: CopyMode): void => {
    mirror.copyMode = to;
    filter.state.writes = to === 'write-blocking' ? activeWrites(mirror) : null;
    recordsItself(bitmap, to);
  };
  const top = filter as unknown as BlockNode;
  try {
    await changeGraph(filter.layer, [top], (graph) => {
      set(mode);
      graph.refresh(top);
    });
  } catch (error) {
    set(copyMode);
    throw error;
  }
}

/** In copy mode write-blocking the writes themselves tell what is not the same on both sides. */
function recordsItself(bitmap: DirtyBitmap, mode: CopyMode): void {
  bitmap.enabled = mode === 'background';
}
