/** How disk images of macOS are known: by their name, since what they are known by is at their end. */

/** 0..100: how sure it is that the image called `filename` is one. */
export function probeDmg(_start: Buffer, filename = ''): number {
  return filename.endsWith('.dmg') ? 2 : 0;
}
