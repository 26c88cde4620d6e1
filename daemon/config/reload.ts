/**
 * Reloading (SIGHUP where there is a configuration): what the files say now and have not said before is added.
 *
 * Nothing is taken away or changed while it may be in use: an entry that has gone, or reads otherwise than when it was
 * carried out, is named in a warning. An entry that fails is reported, and the others are carried out all the same.
 */

import type { CommandContext } from '../../src/commands/context.ts';
import { reasonOf } from '../../src/errors/error.ts';
import { type ExecuteEntry, inOrder } from './apply.ts';
import { type Applied, keyOf } from './entries.ts';
import { type ConfigItem, readConfig, SECTIONS } from './read.ts';

function textOf({ value }: ConfigItem): string {
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function exists({ objects, chardevs, layer, exports }: CommandContext, section: string, id: string): boolean {
  switch (section) {
    case 'object':
      return objects.find(id) !== null;
    case 'chardev':
      return chardevs.has(id);
    case 'blockdev':
      return layer.findNode(id) !== null;
    case 'nbd-server':
      return exports.nbdServerOptions !== null;
    case 'export':
      return exports.query().some((each) => each.id === id);
    default:
      return false;
  }
}

/** Adds what is new in the configuration `name`. Returns how many entries; trouble is told by `warn`. */
export async function reloadConfig(
  name: string,
  context: CommandContext,
  applied: Applied,
  execute: ExecuteEntry,
  warn: (text: string) => void,
): Promise<number> {
  const items = readConfig(name);
  const present = new Set<string>();
  let added = 0;
  for (const section of SECTIONS) {
    const entries = items.filter((item) => item.section === section);
    for (const item of section === 'blockdev' ? inOrder(entries) : entries) {
      const text = textOf(item);
      const key = keyOf(section, text);
      present.add(key);
      const before = applied.get(key);
      if (before === text) continue;
      if (before !== undefined || exists(context, section, key.slice(section.length + 1))) {
        warn(`${item.place('')}: is there already, and stays as it is until the daemon is restarted`);
        continue;
      }
      try {
        await execute(section, text);
        added++;
      } catch (error) {
        warn(`${item.place('')}: ${reasonOf(error)}`);
      }
    }
  }
  for (const key of applied.keys())
    if (!present.has(key))
      warn(`'${key}' is not in '${name}' any more, and stays until the daemon is restarted`);
  return added;
}
