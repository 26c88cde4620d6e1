/** Percent-encoding in names of what is on a network. Part of what network drivers share. */

/** The text that is meant; what is not encoded as it should be means itself, and no more than that does. */
export function percentDecoded(text: string): string {
  return text.replace(/(?:%[0-9a-f]{2})+/gi, (escapes) => {
    try {
      return decodeURIComponent(escapes);
    } catch {
      return escapes;
    }
  });
}
