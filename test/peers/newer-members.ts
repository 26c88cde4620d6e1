/**
 * What later releases of the original, or this project alone, tell and 7.2 does not: taken out of a reply before it is compared with
 * 7.2's. That a 7.2 client finds all that it knows is what the comparison is for.
 */

type Members = Record<string, unknown>;

/** A copy of the reply without them, at any depth. */
export function withoutNewer(value: unknown): unknown {
  if (typeof value === 'string') return withoutHolders(value);
  if (Array.isArray(value)) return value.filter((item) => !isNewerName(item)).map(withoutNewer);
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype)
    return value;
  const record = value as Members;
  return Object.fromEntries(
    Object.entries(record)
      .filter(([name, member]) => !isNewer(record, name, member))
      .map(([name, member]) => [name, withoutNewer(member)]),
  );
}

/** Names of QOM types and properties that later releases have. */
export const NEWER_NAMES: readonly string[] = ['chardev-hub', 'monitor', 'monitor-qmp', 'poll-weight'];

function isNewerName(item: unknown): boolean {
  return typeof item === 'object' && item !== null && NEWER_NAMES.includes(String((item as Members).name));
}

function isNewer(record: Members, name: string, member: unknown): boolean {
  if ('backing_file_depth' in record) return name === 'active' || name === 'children';
  if ('virtual-size' in record)
    return name === 'limits' || (name === 'format-specific' && (member as Members).type === 'file');
  if ('wr_highest_offset' in record) return name.includes('zone_append');
  if ('master-key-iters' in record) return name === 'detached-header';
  return name === 'actively-synced' && 'io-status' in record;
}

/** The same for help, which has one of them a line. */
export function withoutNewerLines(help: string): string {
  const lines = help.split('\n');
  return lines
    .filter((line) => !NEWER_NAMES.some((name) => line.trimStart().startsWith(`${name}=`)))
    .join('\n');
}

/** Who holds a lock only our errors tell, and the tools a line about how to read it all the same. */
export function withoutHolders(text: string): string {
  return text
    .replace(/, held by (this process|process \d+ \([^)]*\))(, process \d+ \([^)]*\))*/g, '')
    .replace(/^To read it all the same.*\n/gm, '');
}
