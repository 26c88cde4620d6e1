/**
 * How often each host cluster is referred to: the counts a check makes of an image, sparse and compact.
 *
 * Counts are kept in pages of bytes, made when a cluster of theirs is first counted, so memory follows what the image
 * really refers to and not the offsets it claims. Counts that do not fit into a byte are kept aside.
 */

const PAGE_BITS = 11;
const PAGE_CLUSTERS = 1 << PAGE_BITS;
/** A byte of this value: the count is in the map. */
const ASIDE = 255;

export class ReferenceCounts {
  readonly #pages = new Map<number, Uint8Array>();
  readonly #large = new Map<number, number>();
  #lastIndex = -1;
  #lastPage: Uint8Array | undefined;
  /** One more than the highest cluster ever counted. */
  end = 0;
  /** The highest count of a cluster ever. */
  most = 0;

  #page(index: number): Uint8Array | undefined {
    if (index !== this.#lastIndex) {
      this.#lastIndex = index;
      this.#lastPage = this.#pages.get(index);
    }
    return this.#lastPage;
  }

  get(cluster: number): number {
    const page = this.#page(Math.floor(cluster / PAGE_CLUSTERS));
    if (page === undefined) return 0;
    const value = page[cluster % PAGE_CLUSTERS]!;
    return value === ASIDE ? this.#large.get(cluster)! : value;
  }

  /** Counts the cluster once more; false when it has been counted `most` times already. */
  add(cluster: number, most: number): boolean {
    const page = this.#page(Math.floor(cluster / PAGE_CLUSTERS));
    const value = page === undefined ? 0 : page[cluster % PAGE_CLUSTERS]!;
    if (page === undefined || value >= ASIDE - 1) {
      const count = this.get(cluster);
      if (count >= most) return false;
      this.set(cluster, count + 1);
      return true;
    }
    if (value >= most) return false;
    page[cluster % PAGE_CLUSTERS] = value + 1;
    if (value >= this.most) this.most = value + 1;
    if (cluster >= this.end) this.end = cluster + 1;
    return true;
  }

  set(cluster: number, value: number): void {
    if (value > this.most) this.most = value;
    const index = Math.floor(cluster / PAGE_CLUSTERS);
    let page = this.#page(index);
    if (page === undefined) {
      page = new Uint8Array(PAGE_CLUSTERS);
      this.#pages.set(index, page);
      this.#lastPage = page;
    }
    page[cluster % PAGE_CLUSTERS] = Math.min(value, ASIDE);
    if (value >= ASIDE) this.#large.set(cluster, value);
    else this.#large.delete(cluster);
    if (cluster >= this.end) this.end = cluster + 1;
  }

  /** Whether [from, to) may hold a count; false is certain. */
  mayHave(from: number, to: number): boolean {
    const last = Math.floor((to - 1) / PAGE_CLUSTERS);
    for (let index = Math.floor(from / PAGE_CLUSTERS); index <= last; index++) {
      if (this.#pages.has(index)) return true;
    }
    return false;
  }

  /** Whether any cluster in [from, to) is counted. */
  hasAny(from: number, to: number): boolean {
    let cluster = from;
    while (cluster < to) {
      const index = Math.floor(cluster / PAGE_CLUSTERS);
      if (this.#page(index) === undefined) {
        cluster = (index + 1) * PAGE_CLUSTERS;
        continue;
      }
      if (this.get(cluster) !== 0) return true;
      cluster++;
    }
    return false;
  }

  /** The first of `wanted` uncounted clusters in a row at or behind `from`; there always are some behind the end. */
  findFree(from: number, wanted: number): number {
    let first = from;
    for (let cluster = from; cluster - first < wanted; cluster++) {
      if (this.get(cluster) !== 0) first = cluster + 1;
    }
    return first;
  }
}
