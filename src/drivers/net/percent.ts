/** Percent-encoding in names of what is on a network. Part of what network drivers share. */

/** The text that is meant; what is not encoded as it should be means itself. */
export function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
