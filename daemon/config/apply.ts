/**
 * Carries a configuration out, by the executors that the options of the command line have: objects first, monitors last,
 * block nodes so that each comes after those it refers to.
 */

import { BlockError } from '../../src/errors/error.ts';
import type { Reporter } from '../reporter.ts';
import { type ConfigItem, errorAt, readConfig, SECTIONS, type Section } from './read.ts';

/** Executes one entry of a section, given as text (JSON for maps). */
export type ExecuteEntry = (section: Section, value: string) => void | Promise<void>;

/** Members of block node options that hold a child: the name of a node, or its definition. */
const CHILD_MEMBERS: ReadonlySet<string> = new Set([
  ...['file', 'backing', 'data-file', 'header', 'target', 'image', 'test', 'raw', 'log', 'children'],
]);

/** Reads the configuration and executes it; where a saved one follows (`saved`), that one's word counts. Errors begin with FILE:LINE:COLUMN. */
export async function applyConfig(
  name: string,
  reporter: Reporter,
  execute: ExecuteEntry,
  saved: string | null = null,
): Promise<void> {
  const later = saved === null ? null : readConfig(saved);
  const items = readConfig(name).filter((item) => later === null || !isSaved(item, later));
  if (items.length === 0 && later === null) reporter.message(`warning: there is nothing in '${name}'`);
  warnOfOpenSecrets(items, reporter);
  for (const section of SECTIONS) {
    const entries = items.filter((item) => item.section === section);
    for (const item of section === 'blockdev' ? inOrder(entries) : entries) await executeItem(item, execute);
  }
}

/** Whether a saved configuration has its own word on the entry: the graph as it was, and objects of the same id. */
function isSaved({ section, value }: ConfigItem, saved: readonly ConfigItem[]): boolean {
  if (section === 'blockdev' || section === 'nbd-server' || section === 'export') return true;
  if (section !== 'object' || typeof value === 'string') return false;
  return saved.some((item) => item.section === 'object' && (item.value as { id?: unknown }).id === value.id);
}

async function executeItem(item: ConfigItem, execute: ExecuteEntry): Promise<void> {
  const text = typeof item.value === 'string' ? item.value : JSON.stringify(item.value);
  try {
    await execute(item.section, text);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const member = /[Pp]arameter '([^']+)'|member '([^']+)'|parameter type for '([^']+)'/.exec(error.message);
    const where = item.place(member?.[1] ?? member?.[2] ?? member?.[3] ?? '');
    throw new BlockError(`${where}: ${error.message}`, {
      errno: error.errno,
      cause: error,
      ...(error.hint !== undefined && { hint: error.hint }),
    });
  }
}

function warnOfOpenSecrets(items: readonly ConfigItem[], reporter: Reporter): void {
  for (const { section, value, place } of items) {
    if (section !== 'object' || typeof value === 'string') continue;
    if (value['qom-type'] !== 'secret' || value.data === undefined || value.keyid !== undefined) continue;
    reporter.message(
      `warning: ${place('data')}: secret '${String(value.id)}' stands here in the clear: give it as 'file', or encrypted with 'keyid'`,
    );
  }
}

/** Names that the options of a node refer to, at any depth. */
function references(value: unknown, member: string | null): string[] {
  if (typeof value === 'string') return member !== null && CHILD_MEMBERS.has(member) ? [value] : [];
  if (Array.isArray(value)) return value.flatMap((element) => references(element, member));
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => references(inner, key));
}

/** The nodes, each behind those it refers to; otherwise as they stand in the file. Throws on a circle. */
export function inOrder(items: readonly ConfigItem[]): ConfigItem[] {
  const nameOf = ({ value }: ConfigItem): string | null =>
    typeof value === 'object' && typeof value['node-name'] === 'string' ? value['node-name'] : null;
  const byName = new Map(
    items.flatMap((item) => (nameOf(item) === null ? [] : [[nameOf(item), item] as const])),
  );
  const done = new Set<ConfigItem>();
  const ordered: ConfigItem[] = [];
  const visit = (item: ConfigItem, path: readonly ConfigItem[]): void => {
    if (done.has(item)) return;
    if (path.includes(item)) {
      const circle = [...path.slice(path.indexOf(item)), item].map(nameOf).join(' -> ');
      throw errorAt(item.place(''), `Block nodes refer to each other in a circle: ${circle}`);
    }
    for (const name of references(item.value, null)) {
      const other = byName.get(name);
      if (other !== undefined) visit(other, [...path, item]);
    }
    done.add(item);
    ordered.push(item);
  };
  for (const item of items) visit(item, []);
  return ordered;
}
