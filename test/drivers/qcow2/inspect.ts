/**
 * An independent look at an image in memory: counts the references to every host cluster and compares them with the
 * refcounts. Written against the specification alone, for images without external data.
 */

export interface Inspection {
  /** What would lose data: references that are not counted, flags that lie, pointers that lead nowhere. */
  readonly corruptions: readonly string[];
  readonly leaks: number;
  readonly dirty: boolean;
}

/** Counts the bitmap directory with the tables and bits it leads to. */
function walkBitmaps(
  image: Buffer,
  corruptions: string[],
  refer: (offset: number, bytes: number, what: string) => void,
): void {
  const u64 = (at: number): number => (at + 8 <= image.length ? Number(image.readBigUInt64BE(at)) : 0);
  let at = image.readUInt32BE(100);
  while (image.readUInt32BE(at) !== 0x23852875 && image.readUInt32BE(at) !== 0)
    at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8;
  if (image.readUInt32BE(at) === 0) return;
  const directory = u64(at + 24);
  const end = directory + u64(at + 16);
  refer(directory, end - directory, 'bitmap directory');
  for (let entry = directory, left = image.readUInt32BE(at + 8); left > 0; left--) {
    if (entry + 24 > Math.min(end, image.length)) {
      corruptions.push('bitmap directory is not there');
      return;
    }
    const entries = image.readUInt32BE(entry + 8);
    refer(u64(entry), entries * 8, 'bitmap table');
    for (let i = 0; i < entries; i++) {
      const bits = u64(u64(entry) + i * 8);
      if (bits > 1) refer(bits, 1, 'bits');
    }
    entry += Math.ceil((24 + image.readUInt16BE(entry + 18)) / 8) * 8;
  }
}

/** `flags` false: COPIED flags are not looked at. */
export function inspect(image: Buffer, flags = true): Inspection {
  const corruptions: string[] = [];
  if (image.readUInt32BE(0) !== 0x514649fb) return { corruptions: ['no magic'], leaks: 0, dirty: false };
  const version = image.readUInt32BE(4);
  const clusterBits = image.readUInt32BE(20);
  const clusterBytes = 2 ** clusterBits;
  const u64 = (at: number): number => Number(image.readBigUInt64BE(at));
  const incompatible = version >= 3 ? u64(72) : 0;
  const order = version >= 3 ? image.readUInt32BE(96) : 4;
  const entryBytes = (incompatible & 16) !== 0 ? 16 : 8;
  const references = new Map<number, number>();
  const refer = (offset: number, bytes: number, what: string): void => {
    if (offset >= image.length + clusterBytes) corruptions.push(`${what} at ${offset} is behind the end`);
    const last = Math.floor((offset + bytes - 1) / clusterBytes);
    for (let cluster = Math.floor(offset / clusterBytes); cluster <= last; cluster++) {
      references.set(cluster, (references.get(cluster) ?? 0) + 1);
    }
  };
  const perBlock = (clusterBytes * 8) / 2 ** order;
  const tableOffset = u64(48);
  const tableEntries = (image.readUInt32BE(56) * clusterBytes) / 8;
  const blocks: number[] = [];
  for (let i = 0; i < tableEntries; i++) {
    const at = tableOffset + i * 8;
    blocks.push(at + 8 <= image.length ? u64(at) : 0);
  }
  const refcount = (cluster: number): number => {
    const block = blocks[Math.floor(cluster / perBlock)] ?? 0;
    if (block === 0) return 0;
    const index = cluster % perBlock;
    const at = block + Math.floor((index * 2 ** order) / 8);
    if (at + 2 ** Math.max(order - 3, 0) > image.length) return 0;
    if (order === 6) return u64(at);
    if (order === 5) return image.readUInt32BE(at);
    if (order === 4) return image.readUInt16BE(at);
    const bits = 2 ** order;
    return (image[at]! >> ((index * bits) % 8)) & (2 ** bits - 1);
  };
  const checks: (() => void)[] = [];
  const walk = (l1Offset: number, l1Entries: number, active: boolean): void => {
    if (l1Entries > 0) refer(l1Offset, l1Entries * 8, 'L1 table');
    for (let i = 0; i < l1Entries; i++) {
      const at = l1Offset + i * 8;
      const entry = at + 8 <= image.length ? image.readBigUInt64BE(at) : 0n;
      const l2 = Number(entry & 0x00fffffffffffe00n);
      if (l2 === 0) continue;
      refer(l2, 1, 'L2 table');
      if (active && flags)
        checks.push(() => {
          const copied = entry >> 63n === 1n;
          if (copied !== (refcount(l2 / clusterBytes) === 1)) corruptions.push(`COPIED of L1 entry ${i}`);
        });
      for (let j = 0; j < clusterBytes / entryBytes; j++) {
        const place = l2 + j * entryBytes;
        if (place + 8 > image.length) break;
        const data = image.readBigUInt64BE(place);
        if (((data >> 62n) & 1n) === 1n) {
          const x = BigInt(62 - (clusterBits - 8));
          const start = Number(data & ((1n << x) - 1n));
          const sectors = Number((data & 0x3fffffffffffffffn) >> x) + 1;
          refer(start - (start % 512), sectors * 512, 'compressed data');
          continue;
        }
        const host = Number(data & 0x00fffffffffffe00n);
        if (host === 0) continue;
        if (host % clusterBytes !== 0) corruptions.push(`L2 entry ${i}/${j} is unaligned`);
        refer(host, 1, 'data');
        if (active && flags)
          checks.push(() => {
            const copied = data >> 63n === 1n;
            if (copied !== (refcount(host / clusterBytes) === 1))
              corruptions.push(`COPIED of L2 entry ${i}/${j}`);
          });
      }
    }
  };
  refer(0, 1, 'header');
  refer(tableOffset, tableEntries * 8, 'refcount table');
  for (const block of blocks) if (block !== 0) refer(block, 1, 'refcount block');
  walk(u64(40), image.readUInt32BE(36), true);
  let at = u64(64);
  const snapshots = image.readUInt32BE(60);
  for (let i = 0; i < snapshots; i++) {
    if (at + 40 > image.length) {
      corruptions.push('snapshot table is not there');
      break;
    }
    walk(u64(at), image.readUInt32BE(at + 8), false);
    const bytes =
      40 + image.readUInt32BE(at + 36) + image.readUInt16BE(at + 12) + image.readUInt16BE(at + 14);
    at += Math.ceil(bytes / 8) * 8;
  }
  if (snapshots > 0) refer(u64(64), at - u64(64), 'snapshot table');
  if (version >= 3 && (image[95]! & 1) === 1) walkBitmaps(image, corruptions, refer);
  let leaks = 0;
  const clusters = Math.max(Math.ceil(image.length / clusterBytes), ...references.keys());
  for (let cluster = 0; cluster <= clusters; cluster++) {
    const counted = refcount(cluster);
    const used = references.get(cluster) ?? 0;
    if (counted < used) corruptions.push(`cluster ${cluster}: refcount ${counted}, references ${used}`);
    if (counted > used) leaks++;
  }
  for (const check of checks) check();
  return { corruptions, leaks, dirty: (incompatible & 1) !== 0 };
}
