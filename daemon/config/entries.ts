/** Entries of configurations that have been carried out: how one is told from another. */

/** Entries that have been carried out, as text: by section, and by id where they have one. */
export type Applied = Map<string, string>;

/** What tells an entry from others: its id or node name; its text where it has none. */
export function keyOf(section: string, text: string): string {
  const id =
    /"(?:id|node-name)":"([^"]*)"/.exec(text)?.[1] ?? /(?:^|,)(?:id|node-name)=([^,]*)/.exec(text)?.[1];
  return `${section} ${section === 'nbd-server' ? '' : (id ?? text)}`;
}
