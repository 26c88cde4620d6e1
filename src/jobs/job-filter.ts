/** Filters of jobs: nodes that jobs put into the graph for as long as they run. */

import type { BlockDriver } from '../block/contract/driver.ts';
import { changeGraph, type GraphChange, makeNode, putOnTop, redirectParents } from '../block/graph/change.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { checkNodeName } from '../block/open/open.ts';

export interface JobFilter {
  readonly driver: BlockDriver<null>;
  /** Null: it gets a name. */
  readonly name: string | null;
  /** Name of the edge to what is below. */
  readonly edge: 'file' | 'backing';
  readonly readOnly: boolean;
}

/**
 * Puts a new filter on `below`, which stays open until removeFilter or releaseFilter. Throws when the name cannot be had,
 * or permissions conflict.
 */
export async function insertFilter(below: BlockNode, given: JobFilter): Promise<BlockNode> {
  const { layer } = below;
  const { driver, name, edge, readOnly } = given;
  if (name !== null) checkNodeName(layer, name);
  const filter = makeNode(layer, driver, { name, readOnly, state: null }) as unknown as BlockNode;
  try {
    await changeGraph(layer, [below, filter], (graph) => putOnTop(graph, filter, below, { name: edge }));
  } catch (error) {
    await layer.closeIfUnused(filter);
    throw error;
  }
  layer.hold(filter);
  return filter;
}

/**
 * The filter's users get `instead`; what holds the filter itself, such as its job, stays. For use inside a change;
 * releaseFilter comes after it.
 */
export function takeOutFilter(graph: GraphChange, filter: BlockNode, instead: BlockNode): void {
  redirectParents(graph, filter, instead);
  graph.detach(filter.children[0]!);
}

/** The job does not need the filter any more. */
export function releaseFilter(filter: BlockNode): Promise<void> {
  return filter.layer.release(filter);
}

/** Takes the filter out and releases it: its users get what is below it. */
export async function removeFilter(filter: BlockNode): Promise<void> {
  const below = filter.children[0]!.node;
  await changeGraph(filter.layer, [filter, below], (graph) => takeOutFilter(graph, filter, below));
  await releaseFilter(filter);
}
