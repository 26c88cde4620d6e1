/** A set of host clusters that is large where it is dense: a bit for each cluster of a page that has any. */

export class ClusterSet {
  readonly #pageClusters: number;
  readonly #pages = new Map<number, Uint8Array>();

  /** `pageClusters`: how many clusters share a page, a multiple of 8. */
  constructor(pageClusters: number) {
    this.#pageClusters = pageClusters;
  }

  has(cluster: number): boolean {
    const page = this.#pages.get(Math.floor(cluster / this.#pageClusters));
    if (page === undefined) return false;
    const bit = cluster % this.#pageClusters;
    return (page[bit >> 3]! & (1 << (bit & 7))) !== 0;
  }

  add(cluster: number): void {
    const index = Math.floor(cluster / this.#pageClusters);
    let page = this.#pages.get(index);
    if (page === undefined) {
      page = new Uint8Array(this.#pageClusters / 8);
      this.#pages.set(index, page);
    }
    const bit = cluster % this.#pageClusters;
    page[bit >> 3]! |= 1 << (bit & 7);
  }

  /** Whether it was in the set. */
  delete(cluster: number): boolean {
    if (!this.has(cluster)) return false;
    const bit = cluster % this.#pageClusters;
    this.#pages.get(Math.floor(cluster / this.#pageClusters))![bit >> 3]! &= ~(1 << (bit & 7));
    return true;
  }

  /** The clusters of page `index`, in order. */
  *inPage(index: number): Generator<number> {
    const page = this.#pages.get(index);
    if (page === undefined) return;
    for (const [at, byte] of page.entries()) {
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit++)
        if ((byte & (1 << bit)) !== 0) yield index * this.#pageClusters + at * 8 + bit;
    }
  }

  /** All clusters as runs [first, count], in order. */
  *runs(): Generator<readonly [number, number]> {
    let first = -1;
    let end = -1;
    for (const index of [...this.#pages.keys()].sort((one, other) => one - other)) {
      for (const cluster of this.inPage(index)) {
        if (cluster !== end) {
          if (first >= 0) yield [first, end - first];
          first = cluster;
        }
        end = cluster + 1;
      }
    }
    if (first >= 0) yield [first, end - first];
  }
}
