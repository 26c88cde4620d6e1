/**
 * The graph as options for blockdev-add: what must be given to have the same nodes again, in an order that works.
 *
 * Here: nodes and edges. What images keep in themselves (persistent bitmaps, the names of their own backing images) is
 * left to them; filters that jobs have put in are left out, as jobs are.
 */

import type { DriverOptions } from '../contract/image.ts';
import { filteredChild } from '../graph/chain.ts';
import type { BlockChild, BlockNode } from '../graph/node.ts';
import type { BlockLayer } from '../layer.ts';
import { exactFilename } from '../open/filename.ts';
import { nest } from '../open/options.ts';

/** Names of nodes that users may give begin with a letter; the daemon's own begin with "#". */
const hasOwnName = (node: BlockNode): boolean => !node.name.startsWith('#');

/** Every node that must be added by itself, each behind those it refers to. `openable`: drivers that users may name. */
export function savedNodes(layer: BlockLayer, openable: (driver: string) => boolean): DriverOptions[] {
  const saver = new NodeSaver(openable);
  for (const node of layer.nodes) if (node.monitorOwned) saver.save(node);
  return saver.saved;
}

class NodeSaver {
  readonly saved: DriverOptions[] = [];
  readonly #names = new Map<BlockNode, string>();
  readonly #openable: (driver: string) => boolean;

  constructor(openable: (driver: string) => boolean) {
    this.#openable = openable;
  }

  /** Adds the node to the list; returns the name by which others refer to it. */
  save(given: BlockNode): string {
    const node = this.#real(given);
    const known = this.#names.get(node);
    if (known !== undefined) return known;
    const name = hasOwnName(node) ? node.name : `saved-${this.#names.size}`;
    this.#names.set(node, name);
    // Children first: a definition is complete when it is pushed.
    const options = this.#options(node);
    this.saved.push({ ...options, 'node-name': name });
    return name;
  }

  /** The node itself, or what a filter that no user can make filters. */
  #real(node: BlockNode): BlockNode {
    let at = node;
    while (at.implicit || !this.#openable(at.driver.name)) {
      const below = filteredChild(at);
      if (below === null) return at;
      at = below.node;
    }
    return at;
  }

  #options(node: BlockNode): Record<string, unknown> {
    const options: Record<string, unknown> = {
      driver: node.driver.name,
      ...nest(node.optionsGiven),
      ...(hasOwnName(node) ? { 'node-name': node.name } : {}),
    };
    for (const edge of node.children) {
      if (this.#isImagesChoice(node, edge)) continue;
      addChild(options, edge.name, this.#child(edge.node));
    }
    if (node.driver.supportsBacking === true && node.child('backing') === null && namesBacking(node)) {
      options.backing = null;
    }
    return options;
  }

  /** Whether the image itself names this child, so that opening it brings the child along. */
  #isImagesChoice(node: BlockNode, { name, node: below }: BlockChild): boolean {
    if (below.inheritsFrom !== node) return false;
    // Files that an image is made of cannot be given as options.
    if (name.startsWith('extents.')) return true;
    if (name !== 'backing' || hasOwnName(below)) return false;
    return exactFilename(below) === (node.driver.backingName?.(node)?.filename ?? null);
  }

  /** A name for what others use too, a definition for what is this parent's alone. */
  #child(given: BlockNode): string | Record<string, unknown> {
    const node = this.#real(given);
    const parents = node.parents.filter(({ parent }) => parent.kind === 'node').length;
    return node.monitorOwned || this.#names.has(node) || parents > 1 ? this.save(node) : this.#options(node);
  }
}

function namesBacking(node: BlockNode): boolean {
  return (node.driver.backingName?.(node) ?? null) !== null;
}

/** Children called NAME.NUMBER are a list called NAME. */
function addChild(options: Record<string, unknown>, name: string, child: unknown): void {
  const list = /^(.+)\.\d+$/.exec(name)?.[1];
  if (list === undefined) options[name] = child;
  else options[list] = [...((options[list] as unknown[] | undefined) ?? []), child];
}
