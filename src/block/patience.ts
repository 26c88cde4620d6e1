/** How long servers elsewhere may hold up the end of the daemon: requests to them are given up again and again. */

/** Short enough that the daemon has ended 5 s after it was asked to. */
const PATIENCE_AT_END_MS = 2000;
/** Nodes are flushed and closed one after another: what each of them waits for is given up soon. */
const AFTERWARDS_MS = 100;

export interface Patient {
  /** When the end began, by performance.now(); null: not yet. */
  endBeganMs: number | null;
  cancelRequests(): void;
}

/**
 * Gives up requests to other servers after a while, and those that come after them, until the result is called. The
 * patience is one for all: it begins with the first call for the layer.
 */
export function limitPatience(layer: Patient): () => void {
  layer.endBeganMs ??= performance.now();
  const waited = performance.now() - layer.endBeganMs;
  let timer = setTimeout(
    function giveUp() {
      layer.cancelRequests();
      timer = setTimeout(giveUp, AFTERWARDS_MS);
    },
    Math.max(0, PATIENCE_AT_END_MS - waited),
  );
  return () => clearTimeout(timer);
}
