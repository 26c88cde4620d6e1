/**
 * The order in which the original writes the members of an object, and the order in which it names unexpected ones.
 *
 * JSON gives no meaning to the order, but people and scripts compare output as text, and of several errors only the
 * first is reported. Both orders were found by probing qemu-storage-daemon 7.2, and are those of well-known hash
 * tables: 512 buckets under the string hash of the dbm libraries, the newest member of a bucket first; and open
 * addressing under the hash h = h * 33 + c.
 */

const BUCKETS = 512;

/** Bucket of a member name: the dbm hash over its UTF-8 bytes. */
function bucketOf(name: string): number {
  let length = name.length;
  for (let i = 0; i < name.length; i++) {
    if (name.charCodeAt(i) >= 0x80) return bucketOfBytes(Buffer.from(name, 'utf8'));
  }
  let hash = Math.imul(0x238f13af, length);
  for (length = 0; length < name.length; length++) hash += name.charCodeAt(length) << ((length * 5) % 24);
  return (Math.imul(1103515243, hash) + 12345) & (BUCKETS - 1);
}

function bucketOfBytes(bytes: Uint8Array): number {
  let hash = Math.imul(0x238f13af, bytes.length);
  for (let i = 0; i < bytes.length; i++) hash += (bytes[i] ?? 0) << ((i * 5) % 24);
  return (Math.imul(1103515243, hash) + 12345) & (BUCKETS - 1);
}

/** Member names in the order in which they are written. `names` is in order of insertion. */
export function writeOrder(names: readonly string[]): readonly string[] {
  if (names.length < 2) return names;
  const entries = names.map((name, index) => ({ name, index, bucket: bucketOf(name) }));
  entries.sort((a, b) => a.bucket - b.bucket || b.index - a.index);
  return entries.map((entry) => entry.name);
}

/** [least number of members, slots of the table, modulus of the hash] */
const TABLE_SIZES = [
  [0, 8, 7],
  [8, 16, 13],
  [16, 32, 31],
  [32, 64, 61],
  [64, 128, 127],
  [128, 256, 251],
  [256, 512, 509],
  [512, 1024, 1021],
  [1024, 2048, 2039],
  [2048, 4096, 4093],
] as const;

function timesThirtyThree(name: string): number {
  let hash = 5381;
  for (const byte of Buffer.from(name, 'utf8')) hash = (Math.imul(hash, 33) + ((byte << 24) >> 24)) >>> 0;
  return Math.imul(hash, 11) >>> 0;
}

/** Members of an object in the order in which unexpected ones are reported. `names` is in order of insertion. */
export function reportOrder(names: readonly string[]): readonly string[] {
  if (names.length < 2) return names;
  const [, slots, modulus] = TABLE_SIZES.findLast(([least]) => names.length >= least) ?? TABLE_SIZES[0];
  if (names.length >= slots) return names; // more than anyone sends by accident
  const table = new Array<string | undefined>(slots);
  for (const name of writeOrder(names)) {
    let slot = timesThirtyThree(name) % modulus;
    for (let step = 1; table[slot] !== undefined; step++) slot = (slot + step) & (slots - 1);
    table[slot] = name;
  }
  return table.filter((name) => name !== undefined);
}
