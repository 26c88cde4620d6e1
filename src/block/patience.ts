/** How long servers elsewhere may hold up the end of the daemon: requests to them are given up again and again. */

/** Short enough that the daemon has ended 5 s after it was asked to. */
const PATIENCE_AT_END_MS = 2000;
const AFTERWARDS_MS = 1000;

/** Gives up requests to other servers after a while, and those that come after them, until the result is called. */
export function limitPatience(layer: { cancelRequests(): void }): () => void {
  let timer = setTimeout(function giveUp() {
    layer.cancelRequests();
    timer = setTimeout(giveUp, AFTERWARDS_MS);
  }, PATIENCE_AT_END_MS);
  return () => clearTimeout(timer);
}
