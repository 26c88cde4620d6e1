/**
 * A large, mostly uniform set of bits: a tree whose leaves are made only where bits differ.
 *
 * A leaf holds 32768 bits; an inner node has 1024 children and remembers which of them hold set bits and which hold
 * clear ones, so that the next set or clear bit is found in a few steps per level however far away it is. A subtree
 * without set bits is null, one without clear bits is FULL: neither takes memory. Four levels are enough for 2^45 bits.
 * What the bits stand for is dirty-bitmap.ts.
 */

import { isZero } from '../../aio/memory.ts';
import { assert } from '../../errors/error.ts';

const LEAF_BITS = 32768;
const LEAF_WORDS = LEAF_BITS / 32;
const FANOUT = 1024;
/** Level of the root of the largest bitmap. */
const MAX_DEPTH = 3;
const MASK_WORDS = FANOUT / 32;
const ALL_ONES = 0xffffffff;

/** Longest bitmap. */
export const MAX_BITMAP_LENGTH = LEAF_BITS * FANOUT ** MAX_DEPTH;

const FULL = Symbol('all bits set');

interface Leaf {
  readonly words: Uint32Array;
  /** Set bits. */
  count: number;
}

interface Inner {
  readonly children: Tree[];
  /** One bit per child: it holds a set bit; it holds a clear bit. */
  readonly someSet: Uint32Array;
  readonly someClear: Uint32Array;
  count: number;
}

type Tree = null | typeof FULL | Leaf | Inner;

/** Leaves below a node of each level; level 0 is a leaf. */
const LEAVES: readonly number[] = [0, 1, 2, 3].map((level) => FANOUT ** level);

/** Bits below a node of a level. */
function spanOf(level: number): number {
  return LEAF_BITS * LEAVES[level]!;
}

function countOf(tree: Tree, level: number): number {
  if (tree === null) return 0;
  return tree === FULL ? spanOf(level) : tree.count;
}

function bitCount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return (((v + (v >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** Bits [from, to) of a word, 0 <= from < to <= 32. */
function wordMask(from: number, to: number): number {
  return ((ALL_ONES << from) & (ALL_ONES >>> (32 - to))) >>> 0;
}

function newLeaf(tree: Tree): Leaf {
  const words = new Uint32Array(LEAF_WORDS);
  if (tree === FULL) words.fill(ALL_ONES);
  return { words, count: tree === FULL ? LEAF_BITS : 0 };
}

function asLeaf(tree: Tree): Leaf {
  return tree === null || tree === FULL ? newLeaf(tree) : (tree as Leaf);
}

function newInner(tree: Tree, level: number): Inner {
  const full = tree === FULL;
  return {
    children: new Array<Tree>(FANOUT).fill(full ? FULL : null),
    someSet: new Uint32Array(MASK_WORDS).fill(full ? ALL_ONES : 0),
    someClear: new Uint32Array(MASK_WORDS).fill(full ? 0 : ALL_ONES),
    count: full ? spanOf(level) : 0,
  };
}

/** The tree in its smallest form. */
function normalised(tree: Leaf | Inner, level: number): Tree {
  if (tree.count === 0) return null;
  return tree.count === spanOf(level) ? FULL : tree;
}

function asInner(tree: Tree, level: number): Inner {
  return tree === null || tree === FULL ? newInner(tree, level) : (tree as Inner);
}

/** Puts a child in; `before` is the count of the one that was there. */
function putChild(inner: Inner, index: number, child: Tree, level: number, before: number): void {
  inner.count += countOf(child, level - 1) - before;
  inner.children[index] = child;
  const word = index >> 5;
  const bit = 1 << (index & 31);
  if (child === null) inner.someSet[word]! &= ~bit;
  else inner.someSet[word]! |= bit;
  if (child === FULL) inner.someClear[word]! &= ~bit;
  else inner.someClear[word]! |= bit;
}

// ---- changes ---------------------------------------------------------------------------------------------------

/** Sets or clears bits [from, to) of a subtree, 0 <= from < to <= its span. Trees are changed in place. */
function update(tree: Tree, level: number, from: number, to: number, value: boolean): Tree {
  const uniform = value ? FULL : null;
  if (tree === uniform) return tree;
  if (from === 0 && to === spanOf(level)) return uniform;
  if (level === 0) {
    const leaf = asLeaf(tree);
    updateLeaf(leaf, from, to, value);
    return normalised(leaf, 0);
  }
  const inner = asInner(tree, level);
  const span = spanOf(level - 1);
  const last = Math.floor((to - 1) / span);
  for (let index = Math.floor(from / span); index <= last; index++) {
    const start = index * span;
    const child = inner.children[index]!;
    const before = countOf(child, level - 1);
    const first = Math.max(from - start, 0);
    const changed = update(child, level - 1, first, Math.min(to - start, span), value);
    putChild(inner, index, changed, level, before);
  }
  return normalised(inner, level);
}

function updateLeaf(leaf: Leaf, from: number, to: number, value: boolean): void {
  const { words } = leaf;
  let changed = 0;
  for (let at = from; at < to; ) {
    const word = at >> 5;
    const end = Math.min(to, (word + 1) * 32);
    const mask = wordMask(at & 31, end - word * 32);
    const old = words[word]!;
    const now = (value ? old | mask : old & ~mask) >>> 0;
    changed += bitCount(now) - bitCount(old);
    words[word] = now;
    at = end;
  }
  leaf.count += changed;
}

/** Sets the bits that are set in `source`, whose first word lies at word `firstWord` of the leaf's words. */
function orWords(leaf: Leaf, firstWord: number, source: Uint32Array): void {
  const { words } = leaf;
  let changed = 0;
  for (let i = 0; i < source.length; i++) {
    const old = words[firstWord + i]!;
    const now = (old | source[i]!) >>> 0;
    if (now === old) continue;
    changed += bitCount(now) - bitCount(old);
    words[firstWord + i] = now;
  }
  leaf.count += changed;
}

/** As orWords, for the leaf at index `leafIndex` of a subtree. */
function orIntoLeaf(
  tree: Tree,
  level: number,
  leafIndex: number,
  firstWord: number,
  source: Uint32Array,
): Tree {
  if (tree === FULL) return tree;
  if (level === 0) {
    const leaf = asLeaf(tree);
    orWords(leaf, firstWord, source);
    return normalised(leaf, 0);
  }
  const inner = asInner(tree, level);
  const leaves = LEAVES[level - 1]!;
  const index = Math.floor(leafIndex / leaves);
  const child = inner.children[index]!;
  const before = countOf(child, level - 1);
  putChild(inner, index, orIntoLeaf(child, level - 1, leafIndex % leaves, firstWord, source), level, before);
  return normalised(inner, level);
}

/** The union of two trees of one level; `other` stays as it is. */
function union(tree: Tree, other: Tree, level: number): Tree {
  if (other === null || tree === FULL) return tree;
  if (other === FULL) return FULL;
  if (tree === null) return clone(other, level);
  if (level === 0) {
    orWords(tree as Leaf, 0, (other as Leaf).words);
    return normalised(tree as Leaf, 0);
  }
  const inner = tree as Inner;
  for (let index = 0; index < FANOUT; index++) {
    const added = (other as Inner).children[index]!;
    if (added === null) continue;
    const child = inner.children[index]!;
    const before = countOf(child, level - 1);
    putChild(inner, index, union(child, added, level - 1), level, before);
  }
  return normalised(inner, level);
}

function clone(tree: Tree, level: number): Tree {
  if (tree === null || tree === FULL) return tree;
  if (level === 0) {
    const { words, count } = tree as Leaf;
    return { words: words.slice(), count };
  }
  const { children, someSet, someClear, count } = tree as Inner;
  return {
    children: children.map((child) => clone(child, level - 1)),
    someSet: someSet.slice(),
    someClear: someClear.slice(),
    count,
  };
}

// ---- looking ---------------------------------------------------------------------------------------------------

/** Index of the lowest bit of `words` at or behind `from` that is set (`flip` 0) or clear (ALL_ONES); -1: none. */
function scan(words: Uint32Array, from: number, flip: number): number {
  let word = from >> 5;
  if (word >= words.length) return -1;
  let bits = (words[word]! ^ flip) & (ALL_ONES << (from & 31));
  while (bits === 0) {
    if (++word === words.length) return -1;
    bits = words[word]! ^ flip;
  }
  return word * 32 + 31 - Math.clz32(bits & -bits);
}

/** The first bit with that value at or behind `from`, relative to the subtree; -1: none. */
function find(tree: Tree, level: number, from: number, value: boolean): number {
  if (tree === null) return value ? -1 : from;
  if (tree === FULL) return value ? from : -1;
  if (level === 0) return scan((tree as Leaf).words, from, value ? 0 : ALL_ONES);
  const { children, someSet, someClear } = tree as Inner;
  const span = spanOf(level - 1);
  const index = Math.floor(from / span);
  const near = find(children[index]!, level - 1, from - index * span, value);
  if (near >= 0) return index * span + near;
  const next = scan(value ? someSet : someClear, index + 1, 0);
  return next < 0 ? -1 : next * span + find(children[next]!, level - 1, 0, value);
}

/** The leaf (or uniform subtree) at index `leafIndex`. */
function leafAt(root: Tree, depth: number, leafIndex: number): null | typeof FULL | Leaf {
  let tree = root;
  let index = leafIndex;
  for (let level = depth; level > 0; level--) {
    if (tree === null || tree === FULL) return tree;
    const leaves = LEAVES[level - 1]!;
    tree = (tree as Inner).children[Math.floor(index / leaves)]!;
    index %= leaves;
  }
  return tree as null | typeof FULL | Leaf;
}

// ---- the bitmap ------------------------------------------------------------------------------------------------

/** Bits 0 to `length` - 1, all clear at first. `length` at most MAX_BITMAP_LENGTH. */
export class HierarchicalBitmap {
  #root: Tree = null;
  #depth: number;
  #length: number;

  constructor(length: number) {
    assert(
      Number.isSafeInteger(length) && length >= 0 && length <= MAX_BITMAP_LENGTH,
      'bitmap length out of range',
    );
    this.#length = length;
    this.#depth = 0;
    while (spanOf(this.#depth) < length) this.#depth++;
  }

  get length(): number {
    return this.#length;
  }

  /** Set bits. */
  get count(): number {
    return countOf(this.#root, this.#depth);
  }

  /** Sets bits [from, to); the part behind the end is ignored. */
  set(from: number, to: number): void {
    const end = Math.min(to, this.#length);
    if (from < end) this.#root = update(this.#root, this.#depth, from, end, true);
  }

  /** Clears bits [from, to); the part behind the end is ignored. */
  reset(from: number, to: number): void {
    const end = Math.min(to, this.#length);
    if (from < end) this.#root = update(this.#root, this.#depth, from, end, false);
  }

  clear(): void {
    this.#root = null;
  }

  get(index: number): boolean {
    return index < this.#length && find(this.#root, this.#depth, index, true) === index;
  }

  /** The first set bit in [from, to); -1: none. */
  nextSet(from: number, to = this.#length): number {
    const end = Math.min(to, this.#length);
    if (from >= end) return -1;
    const found = find(this.#root, this.#depth, from, true);
    return found < end ? found : -1;
  }

  /** The first clear bit in [from, to); -1: none. */
  nextClear(from: number, to = this.#length): number {
    const end = Math.min(to, this.#length);
    if (from >= end) return -1;
    const found = find(this.#root, this.#depth, from, false);
    return found < end ? found : -1;
  }

  /** Adds the set bits of a bitmap of the same length. */
  merge(other: HierarchicalBitmap): void {
    assert(other.#length === this.#length, 'bitmaps of different lengths');
    if (other.#depth === this.#depth) {
      this.#root = union(this.#root, other.#root, this.#depth);
      return;
    }
    for (let from = other.nextSet(0); from >= 0; ) {
      const clear = other.nextClear(from);
      const to = clear < 0 ? this.#length : clear;
      this.set(from, to);
      from = other.nextSet(to);
    }
  }

  /** Changes the length; new bits are clear, bits behind the new end are gone. */
  resize(length: number): void {
    assert(
      Number.isSafeInteger(length) && length >= 0 && length <= MAX_BITMAP_LENGTH,
      'bitmap length out of range',
    );
    if (length < this.#length) this.reset(length, this.#length);
    while (spanOf(this.#depth) < length) {
      this.#depth++;
      if (this.#root === null) continue;
      const inner = newInner(null, this.#depth);
      putChild(inner, 0, this.#root, this.#depth, 0);
      this.#root = inner;
    }
    this.#length = length;
  }

  /**
   * Writes bits from `firstBit` on into `target`, the lowest bit of a byte first; bits behind the end are 0.
   * `firstBit` is a multiple of 32, the length of `target` one of 4 bytes.
   */
  serialize(firstBit: number, target: Uint8Array): void {
    const view = new DataView(target.buffer, target.byteOffset, target.byteLength);
    for (let at = 0; at < target.length; ) {
      const bit = firstBit + at * 8;
      const inLeaf = bit % LEAF_BITS;
      const bytes = Math.min(target.length - at, (LEAF_BITS - inLeaf) / 8);
      // What lies behind the end of the tree is clear.
      const beyond = bit >= spanOf(this.#depth);
      const leaf = beyond ? null : leafAt(this.#root, this.#depth, Math.floor(bit / LEAF_BITS));
      if (leaf === null || leaf === FULL) target.fill(leaf === null ? 0 : 0xff, at, at + bytes);
      else {
        const first = inLeaf / 32;
        for (let i = 0; i * 4 < bytes; i++) view.setUint32(at + i * 4, leaf.words[first + i]!, true);
      }
      at += bytes;
    }
  }

  /** Sets every bit from `firstBit` on that is set in `source`, laid out as by `serialize`. */
  deserialize(firstBit: number, source: Buffer): void {
    const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
    const end = Math.min(this.#length, firstBit + source.length * 8);
    for (let bit = firstBit; bit < end; ) {
      const inLeaf = bit % LEAF_BITS;
      const bits = Math.min(end - bit, LEAF_BITS - inLeaf);
      const at = (bit - firstBit) / 8;
      const count = Math.ceil(bits / 32);
      // Most of a large bitmap is clear.
      if (isZero(source.subarray(at, at + count * 4))) {
        bit += bits;
        continue;
      }
      const words = new Uint32Array(count);
      let seen = 0;
      for (let i = 0; i < words.length; i++) seen |= words[i] = view.getUint32(at + i * 4, true);
      if (bits % 32 !== 0) words[words.length - 1]! &= wordMask(0, bits % 32);
      if (seen !== 0) {
        const leafIndex = Math.floor(bit / LEAF_BITS);
        this.#root = orIntoLeaf(this.#root, this.#depth, leafIndex, inLeaf / 32, words);
      }
      bit += bits;
    }
  }
}
