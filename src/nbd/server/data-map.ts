/**
 * Where an export is known to hold data.
 *
 * With structured replies a server tells a reader about holes, so before every read it would have to ask where they
 * are, which doubles the work of reading a full disk. This map remembers regions that hold nothing but data. It is
 * only ever wrong in one way: a hole made behind its back travels as zeroes, which is right, if longer. What it
 * knows expires after a second.
 */

const MIN_REGION_BYTES = 1024 * 1024;
/** Bound of the map's memory in bytes; larger disks get larger regions. */
const MAX_REGIONS = 1024 * 1024;
const EXPIRY_MS = 1000;
/** Epochs are stored in a byte, 0 meaning "not known". */
const LAST_EPOCH = 255;

export class DataMap {
  readonly sizeBytes: number;
  readonly regionBytes: number;
  #epochs: Uint8Array | null = null;
  #epoch = 1;
  #epochEndsMs = 0;

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    let regionBytes = MIN_REGION_BYTES;
    while (sizeBytes / regionBytes > MAX_REGIONS) regionBytes *= 2;
    this.regionBytes = regionBytes;
  }

  /** Tells the time; to be called now and then, with performance.now(). */
  tick(nowMs: number): void {
    if (nowMs < this.#epochEndsMs) return;
    this.#epochEndsMs = nowMs + EXPIRY_MS;
    if (this.#epoch === LAST_EPOCH) {
      this.#epoch = 1;
      this.#epochs?.fill(0);
    } else {
      this.#epoch++;
    }
  }

  /** Whether all of [offset, end) is known to hold data. */
  covers(offset: number, end: number): boolean {
    const epochs = this.#epochs;
    if (epochs === null) return false;
    const last = Math.floor((end - 1) / this.regionBytes);
    for (let region = Math.floor(offset / this.regionBytes); region <= last; region++) {
      if (epochs[region] !== this.#epoch) return false;
    }
    return true;
  }

  /** Start of the region that holds `offset`: where to ask, so that the answer can be remembered. */
  regionStart(offset: number): number {
    return Math.floor(offset / this.regionBytes) * this.regionBytes;
  }

  /** [offset, end) holds data: the whole regions in it are remembered. */
  remember(offset: number, end: number): void {
    const first = Math.ceil(offset / this.regionBytes);
    // The last region may be cut short by the end of the disk.
    const last =
      end >= this.sizeBytes ? Math.ceil(end / this.regionBytes) : Math.floor(end / this.regionBytes);
    if (first >= last) return;
    this.#epochs ??= new Uint8Array(Math.ceil(this.sizeBytes / this.regionBytes));
    this.#epochs.fill(this.#epoch, first, last);
  }

  /** [offset, end) may hold holes from now on. */
  forget(offset: number, end: number): void {
    this.#epochs?.fill(0, Math.floor(offset / this.regionBytes), Math.ceil(end / this.regionBytes));
  }
}
