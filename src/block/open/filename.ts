/**
 * File names of nodes, as queries show them: the plain name where one tells the whole story, otherwise `json:{...}`
 * with the options that matter for the content.
 */

import { writeOrder } from '../../errors/member-order.ts';
import { Role } from '../contract/request.ts';
import type { BlockNode } from '../graph/node.ts';

/** What names a node: filters that jobs put in by themselves go without saying, here as wherever they are in a chain. */
function namedNode(node: BlockNode): BlockNode {
  let at = node;
  while (at.implicit && at.primaryChild !== null) at = at.primaryChild.node;
  return at;
}

/** Options that change what a node's content is (or where it comes from), with the nested children's. */
function strongOptions(shown: BlockNode): Record<string, unknown> {
  const node = namedNode(shown);
  const options: Record<string, unknown> = {};
  for (const name of node.driver.strongOptions ?? []) {
    const own = node.settings.options[name];
    const value = own === undefined ? own : (node.driver.shownOption?.(name, own) ?? own);
    if (typeof value === 'object' && value !== null) Object.assign(options, flattened(name, value));
    else if (value !== undefined) options[name] = value;
  }
  const overridden = isBackingOverridden(node);
  if (overridden && node.child('backing') === null) options.backing = null;
  for (const { name, roles, node: below } of node.children)
    if (name === 'backing' && (overridden || (roles & Role.filtered) !== 0))
      options.backing = strongOptions(below);
  options.driver = node.driver.name;
  for (const edge of node.children.filter(({ name }) => name !== 'backing'))
    addChild(options, edge.name, strongOptions(edge.node));
  return options;
}

/** Children called NAME.NUMBER are a list called NAME. */
function addChild(options: Record<string, unknown>, name: string, child: unknown): void {
  const list = /^(.+)\.\d+$/.exec(name)?.[1];
  if (list === undefined) options[name] = child;
  else options[list] = [...((options[list] as unknown[] | undefined) ?? []), child];
}

/** Members and elements at any depth, under dotted names. */
function flattened(name: string, value: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, member]) =>
      typeof member === 'object' && member !== null
        ? Object.entries(flattened(`${name}.${key}`, member))
        : [[`${name}.${key}`, member]],
    ),
  );
}

/** Whether the backing image is another one than the image itself names. */
function isBackingOverridden(node: BlockNode): boolean {
  if (node.driver.supportsBacking !== true) return false;
  const below = node.child('backing')?.node;
  const byImage = below === undefined || below.inheritsFrom === node;
  if (byImage && node.settings.options.backing === undefined) return false;
  const named = node.driver.backingName?.(node)?.filename ?? null;
  return (below === undefined ? null : nodeFilename(below)) !== named;
}

/** The plain file name of the node, or null when only json: can express it. */
export function exactFilename(shown: BlockNode): string | null {
  const node = namedNode(shown);
  if (node.driver.exactFilename !== undefined) return node.driver.exactFilename(node);
  // A filter never goes without saying; a format without options of its own is named like its file, when the file is a protocol: opening that name
  // would put the format on top again.
  const below = node.driver.kind === 'filter' ? undefined : node.primaryChild?.node;
  if (below === undefined || (below.driver.kind !== 'protocol' && below.driver.isProtocolFilter !== true))
    return null;
  const own = (node.driver.strongOptions ?? []).some((name) => node.settings.options[name] !== undefined);
  return own || isBackingOverridden(node) ? null : exactFilename(below);
}

/** The name shown by queries. */
export function nodeFilename(node: BlockNode): string {
  const exact = exactFilename(node);
  return exact ?? `json:${printJson(strongOptions(node))}`;
}

/** JSON with the separators and in the order that the original uses. */
function printJson(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(printJson).join(', ')}]`;
  const record = value as Readonly<Record<string, unknown>>;
  const members = writeOrder(Object.keys(record)).map(
    (key) => `${JSON.stringify(key)}: ${printJson(record[key])}`,
  );
  return `{${members.join(', ')}}`;
}
