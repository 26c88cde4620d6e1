/**
 * Configuration files: YAML, of which JSON is a part, with what the options of the command line take.
 *
 * Here: reading a file or a folder, and where in it everything stands, for errors. Not here: carrying it out (apply.ts),
 * what the members mean (the schema).
 */

import { readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { isMap, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml';
import { BlockError, errnoError, errnoOf } from '../../src/errors/error.ts';

/** Members of a file that hold one thing or a list of things, in the order in which they are carried out. */
export const SECTIONS = [
  'object',
  'chardev',
  'blockdev',
  'nbd-server',
  'export',
  'monitor',
  'qmp',
  'metrics',
] as const;
export type Section = (typeof SECTIONS)[number];

/** Larger files are no configuration. */
const MAX_FILE_BYTES = 64 * 1024 * 1024;

/** One thing to make: an object as QMP has it, or the text that the option of the command line takes. */
export interface ConfigItem {
  readonly section: Section;
  readonly value: Readonly<Record<string, unknown>> | string;
  /** "FILE:LINE:COLUMN" of the member with the dotted name, or of the nearest thing around it; '': of the item. */
  readonly place: (member: string) => string;
}

/** An error in a file: begins with where it is. */
export function errorAt(place: string, message: string, cause?: unknown): BlockError {
  return new BlockError(`${place}: ${message}`, cause === undefined ? {} : { cause });
}

/** Reads a file, or all *.yaml, *.yml and *.json of a folder in the order of their names. */
export function readConfig(name: string): ConfigItem[] {
  return configFiles(name).flatMap(readFile);
}

function configFiles(name: string): string[] {
  try {
    if (!statSync(name).isDirectory()) return [name];
    return readdirSync(name)
      .filter((file) => /\.(ya?ml|json)$/.test(file) && !file.startsWith('.'))
      .sort()
      .map((file) => path.join(name, file));
  } catch (error) {
    throw errnoError(`Could not read configuration '${name}'`, errnoOf(error));
  }
}

function readText(file: string): string {
  try {
    const stat = statSync(file);
    if (!stat.isFile()) throw new BlockError(`Configuration '${file}' is no regular file`);
    if (stat.size > MAX_FILE_BYTES) throw new BlockError(`Configuration '${file}' is too large`);
    return new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(file));
  } catch (error) {
    if (error instanceof BlockError) throw error;
    if (error instanceof TypeError) throw new BlockError(`Configuration '${file}' is not UTF-8`);
    throw errnoError(`Could not read configuration '${file}'`, errnoOf(error));
  }
}

function readFile(file: string): ConfigItem[] {
  const lines = new LineCounter();
  const document = parseDocument(readText(file), {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: true,
  });
  const placeAt = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}`;
  };
  const [error] = document.errors;
  if (error !== undefined) throw errorAt(placeAt(error.pos[0]), error.message);
  const root = document.contents;
  if (root === null) return [];
  if (!isMap(root)) throw errorAt(placeAt(offsetOf(root as Node)), 'A configuration is a map of sections');
  const toPlain = (node: unknown): unknown => {
    try {
      // Anchors are expanded, within a bound: a small file must not become a large one.
      const plain: unknown = (node as Node).toJS(document, { maxAliasCount: 100 });
      JSON.stringify(plain); // throws where something holds itself
      return plain;
    } catch (cause) {
      const message = cause instanceof TypeError ? 'It holds itself' : (cause as Error).message;
      throw errorAt(placeAt(offsetOf(node as Node)), message, cause);
    }
  };
  const items: ConfigItem[] = [];
  for (const { key, value } of root.items) {
    const section = isScalar(key) ? key.value : null;
    if (!isSection(section)) {
      throw errorAt(
        placeAt(offsetOf(key as Node)),
        `Unknown section '${String(section)}', expected one of: ${SECTIONS.join(', ')}`,
      );
    }
    const resolved = value as Node | null;
    for (const node of isSeq(resolved) ? (resolved.items as Node[]) : resolved === null ? [] : [resolved]) {
      const plain = toPlain(node);
      const place = (member: string): string => placeAt(memberOffset(node, member));
      if (
        typeof plain !== 'string' &&
        (typeof plain !== 'object' || plain === null || Array.isArray(plain))
      ) {
        throw errorAt(place(''), `An entry of '${section}' is a map, or a text as on the command line`);
      }
      items.push({ section, value: plain as ConfigItem['value'], place });
    }
  }
  return items;
}

function isSection(name: unknown): name is Section {
  return (SECTIONS as readonly unknown[]).includes(name);
}

function offsetOf(node: Node): number {
  return node.range?.[0] ?? 0;
}

/** Where the member of the dotted name begins; where a part is not there, what is around it. */
function memberOffset(node: Node, member: string): number {
  let at = node;
  let offset = offsetOf(node);
  for (const part of member === '' ? [] : member.split('.')) {
    if (isMap(at)) {
      const pair = at.items.find(({ key }) => isScalar(key) && String(key.value) === part);
      if (pair === undefined) break;
      offset = offsetOf(pair.key as Node);
      at = pair.value as Node;
    } else if (isSeq(at) && /^\d+$/.test(part)) {
      at = at.items[Number(part)] as Node;
      if (at === undefined) break;
      offset = offsetOf(at);
    } else break;
  }
  return offset;
}
