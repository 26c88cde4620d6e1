/**
 * The graph around a mirror job: its filter goes on top of the source, its edges hold what it works with, and in the
 * end the target takes the source's place, or all is as before.
 *
 * Each of these is one graph change: nobody ever sees half of it, and when it is refused the graph is as it was.
 */

import type { DirtyBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import { Perm, type PermissionPair, Role } from '../../block/contract/request.ts';
import { cowChild, showsContentOf, skipFilters } from '../../block/graph/chain.ts';
import {
  changeGraph,
  type GraphChange,
  makeNode,
  putOnTop,
  redirectParents,
} from '../../block/graph/change.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { type MirrorTopNode, mirrorTop } from '../../drivers/filters/mirror-top.ts';
import type { JobNode } from '../block-job.ts';
import { activeWrites } from './active.ts';
import type { CopyMode, Mirror } from './state.ts';

/** What the job takes of the node: the source keeps its size, and others use it as they like. */
const KEEP: PermissionPair = { perm: 0, shared: Perm.all & ~Perm.resize };
const READ: PermissionPair = { perm: Perm.consistentRead, shared: Perm.all & ~Perm.resize };
const NOTHING: PermissionPair = { perm: 0, shared: Perm.all };
const BETWEEN_SHARED = Perm.writeUnchanged | Perm.write;
/** Nobody else may even read the target: it is in no state to be read. */
export const TARGET_USE: PermissionPair = { perm: Perm.write, shared: Perm.writeUnchanged };

/** The nodes a mirror job holds by edges of its own; the backend that writes to the target comes before them. */
export function jobNodes(
  source: BlockNode,
  target: BlockNode,
  filter: MirrorTopNode,
  between: readonly BlockNode[] = [],
): readonly JobNode[] {
  return [
    { name: 'main node', node: filter as unknown as BlockNode, permissions: READ },
    { name: 'source', node: source, permissions: KEEP },
    { name: 'target', node: target, permissions: NOTHING },
    // By themselves these are in no state to be read while the target changes below them.
    // Filters on the target show what it holds.
    ...between.map((node) => {
      const read = showsContentOf(node, target) ? Perm.consistentRead : 0;
      const permissions = { perm: 0, shared: BETWEEN_SHARED | read };
      return { name: 'intermediate node', node, permissions };
    }),
  ];
}

/** Puts a filter on the source; `name` null: it gets one. The caller attaches an edge to it, or removes it. */
export async function insertFilter(
  source: BlockNode,
  name: string | null,
  isCommit = false,
): Promise<MirrorTopNode> {
  const { layer } = source;
  const filter = makeNode(layer, mirrorTop, {
    name,
    readOnly: source.readOnly,
    state: { writes: null, isCommit },
  });
  const node = filter as unknown as BlockNode;
  try {
    await changeGraph(layer, [source, node], (graph) => putOnTop(graph, node, source, { name: 'backing' }));
  } catch (error) {
    await layer.closeIfUnused(node);
    throw error;
  }
  return filter;
}

/** The filter goes: its users have what is below it. */
function removeFilter(graph: GraphChange, filter: MirrorTopNode): void {
  const top = filter as unknown as BlockNode;
  const below = filter.children[0]!;
  redirectParents(graph, top, below.node);
  graph.detach(below);
}

/** The graph is as if there had been no job. The job has given up its nodes, and the caller holds the filter. */
export async function dismantle(source: BlockNode, filter: MirrorTopNode): Promise<void> {
  const top = filter as unknown as BlockNode;
  await changeGraph(source.layer, [source, top], (graph) => removeFilter(graph, filter));
}

/**
 * The target takes the place of `replaced` (the source, or another node with the same content), and the filter goes.
 * `backing` tells what is to be below the target then, and is asked when nothing in the graph can change any more;
 * undefined: what is there now. Source and target are the same and stay so:
 * the caller has drained both, and holds all of these nodes.
 */
export async function pivot(
  filter: MirrorTopNode,
  replaced: BlockNode,
  target: BlockNode,
  backing?: () => BlockNode | null,
): Promise<void> {
  const top = filter as unknown as BlockNode;
  const source = filter.children[0]!.node;
  const image = skipFilters(target);
  await changeGraph(filter.layer, [source, top, target, image, replaced], (graph) => {
    const wanted = backing?.();
    redirectParents(graph, replaced, target);
    removeFilter(graph, filter);
    const before = cowChild(image);
    if (wanted === undefined || (before?.node ?? null) === wanted) return;
    if (before !== null) graph.detach(before);
    if (wanted !== null) graph.attach({ kind: 'node', node: image }, 'backing', Role.cow, wanted);
  });
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
