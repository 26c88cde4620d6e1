/**
 * The substitution boxes of Serpent and their inverses, on 32 nibbles at once: bit i of each of four words is one nibble.
 *
 * Each output bit is the exclusive or of products of input bits (the box's algebraic normal form, computed from the
 * tables in the specification). Source of the facts: Anderson, Biham, Knudsen, "Serpent: A Proposal for the Advanced
 * Encryption Standard", appendix A.5. The cipher is serpent.ts.
 */

/** Substitutes the four words from `s[from]` on in place. */
export type SBox = (s: Int32Array, from: number) => void;

const s0: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const abc = bc & a;
  const acd = ad & c;
  const bcd = bd & c;
  s[from] = ~(a ^ ab ^ c ^ ac ^ bc ^ abc ^ d ^ acd ^ bcd);
  s[from + 1] = ~(a ^ ac ^ bc ^ abc ^ bd ^ acd ^ bcd);
  s[from + 2] = b ^ ab ^ ac ^ abc ^ d ^ bd ^ bcd;
  s[from + 3] = a ^ b ^ c ^ d ^ ad;
};

const s1: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(a ^ b ^ bc ^ ad ^ cd ^ acd ^ bcd);
  s[from + 1] = ~(a ^ ab ^ c ^ ac ^ d ^ bd ^ abd ^ acd ^ bcd);
  s[from + 2] = ~(b ^ ab ^ c ^ d);
  s[from + 3] = ~(b ^ ac ^ d ^ ad ^ abd ^ acd ^ bcd);
};

const s2: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  s[from] = b ^ c ^ ac ^ d;
  s[from + 1] = a ^ b ^ c ^ bc ^ abc ^ ad ^ abd ^ cd ^ acd;
  s[from + 2] = a ^ b ^ bc ^ d ^ bd ^ abd ^ cd ^ acd;
  s[from + 3] = ~(a ^ b ^ c ^ abc ^ bd);
};

const s3: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = a ^ b ^ bc ^ d ^ ad ^ cd ^ acd ^ bcd;
  s[from + 1] = a ^ b ^ ac ^ ad ^ abd ^ cd ^ acd;
  s[from + 2] = a ^ ab ^ c ^ abc ^ d ^ bd ^ abd;
  s[from + 3] = a ^ b ^ ab ^ c ^ ac ^ abc ^ d ^ cd ^ acd;
};

const s4: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(b ^ ab ^ c ^ d ^ ad ^ bd);
  s[from + 1] = a ^ ac ^ bc ^ d ^ bd ^ cd ^ acd ^ bcd;
  s[from + 2] = a ^ ab ^ c ^ bc ^ abc ^ bd ^ abd ^ cd ^ bcd;
  s[from + 3] = a ^ b ^ c ^ bc ^ ad ^ bd ^ abd;
};

const s5: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = ac & b;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(b ^ ab ^ c ^ d ^ ad ^ bd);
  s[from + 1] = ~(a ^ ab ^ c ^ d ^ bd ^ abd ^ cd);
  s[from + 2] = ~(b ^ ac ^ d ^ abd ^ cd ^ acd ^ bcd);
  s[from + 3] = ~(a ^ b ^ c ^ abc ^ d ^ ad ^ acd);
};

const s6: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const bcd = cd & b;
  s[from] = ~(a ^ b ^ c ^ ac ^ bc ^ abc ^ d ^ abd ^ bcd);
  s[from + 1] = ~(b ^ c ^ ad);
  s[from + 2] = ~(a ^ ab ^ c ^ bc ^ abc ^ bd ^ abd ^ cd ^ bcd);
  s[from + 3] = b ^ ab ^ c ^ ac ^ abc ^ d ^ cd ^ bcd;
};

const s7: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(ab ^ c ^ ad ^ bd ^ cd ^ acd ^ bcd);
  s[from + 1] = b ^ ab ^ c ^ ac ^ bc ^ d ^ ad ^ abd ^ acd;
  s[from + 2] = a ^ b ^ c ^ abc ^ d ^ ad ^ bd ^ abd ^ bcd;
  s[from + 3] = a ^ b ^ c ^ ac ^ abc ^ ad;
};

const inverse0: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(ab ^ c ^ bc ^ ad ^ bd ^ abd ^ cd ^ acd ^ bcd);
  s[from + 1] = a ^ b ^ c ^ ac ^ bd ^ acd ^ bcd;
  s[from + 2] = ~(a ^ b ^ ab ^ c ^ d);
  s[from + 3] = ~(a ^ bc ^ d ^ abd ^ cd ^ acd ^ bcd);
};

const inverse1: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const abc = bc & a;
  const acd = ad & c;
  const bcd = bd & c;
  s[from] = ~(a ^ b ^ ab ^ abc ^ bd ^ acd ^ bcd);
  s[from + 1] = b ^ c ^ abc ^ d ^ ad ^ bd ^ acd ^ bcd;
  s[from + 2] = ~(a ^ b ^ ac ^ bc ^ abc ^ d ^ acd);
  s[from + 3] = a ^ c ^ d ^ bd;
};

const inverse2: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  s[from] = a ^ b ^ c ^ bc ^ bd;
  s[from + 1] = b ^ ab ^ c ^ ad ^ abd ^ cd ^ acd;
  s[from + 2] = ~(a ^ ab ^ c ^ d ^ ad ^ bd ^ abd ^ acd);
  s[from + 3] = ~(ab ^ bc ^ abc ^ d ^ acd);
};

const inverse3: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = a ^ c ^ bc ^ d ^ ad ^ bd ^ bcd;
  s[from + 1] = b ^ c ^ bc ^ abc ^ d ^ ad ^ acd ^ bcd;
  s[from + 2] = ab ^ ac ^ bc ^ ad ^ bd ^ abd ^ cd ^ acd;
  s[from + 3] = a ^ b ^ c ^ ac ^ abc ^ ad ^ abd ^ cd;
};

const inverse4: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = ac & b;
  const abd = bd & a;
  const acd = cd & a;
  s[from] = ~(a ^ b ^ c ^ d ^ ad ^ abd ^ cd ^ acd);
  s[from + 1] = ab ^ c ^ ac ^ d ^ ad ^ acd;
  s[from + 2] = ~(a ^ b ^ ab ^ c ^ ac ^ abc ^ d ^ bd ^ abd);
  s[from + 3] = b ^ ab ^ c ^ ad ^ abd ^ cd;
};

const inverse5: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = ad & c;
  s[from] = a ^ bc ^ d ^ abd;
  s[from + 1] = a ^ b ^ ac ^ bc ^ abc ^ d ^ ad ^ abd;
  s[from + 2] = a ^ ab ^ c ^ bd ^ abd ^ acd;
  s[from + 3] = ~(b ^ ab ^ c ^ abc ^ ad);
};

const inverse6: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const bcd = cd & b;
  s[from] = ~(a ^ ab ^ ac ^ bc ^ abc ^ d ^ abd ^ bcd);
  s[from + 1] = ~(b ^ c ^ ac ^ d);
  s[from + 2] = ~(a ^ b ^ bc ^ bd ^ abd ^ cd ^ bcd);
  s[from + 3] = ~(b ^ ab ^ c ^ bc ^ abc ^ d ^ ad ^ abd ^ cd ^ bcd);
};

const inverse7: SBox = (s, from) => {
  const a = s[from]!;
  const b = s[from + 1]!;
  const c = s[from + 2]!;
  const d = s[from + 3]!;
  const ab = a & b;
  const ac = a & c;
  const bc = b & c;
  const ad = a & d;
  const bd = b & d;
  const cd = c & d;
  const abc = bc & a;
  const abd = bd & a;
  const acd = cd & a;
  const bcd = cd & b;
  s[from] = ~(a ^ b ^ bc ^ bd ^ abd ^ cd ^ bcd);
  s[from + 1] = ~(a ^ c ^ bc ^ d ^ ad ^ bd ^ acd ^ bcd);
  s[from + 2] = b ^ ac ^ d ^ abd ^ cd ^ acd;
  s[from + 3] = ab ^ c ^ abc ^ ad ^ bd ^ abd;
};

export const S_BOXES: readonly SBox[] = [s0, s1, s2, s3, s4, s5, s6, s7];
export const INVERSE_S_BOXES: readonly SBox[] = [
  ...[inverse0, inverse1, inverse2, inverse3, inverse4, inverse5, inverse6, inverse7],
];
