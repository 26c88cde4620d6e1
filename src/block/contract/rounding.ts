/** Rounding of offsets and lengths in bytes; exact also beyond 2^32, where bit operations are not. */

export function roundDown(value: number, align: number): number {
  return align === 1 ? value : value - (value % align);
}

export function roundUp(value: number, align: number): number {
  return align === 1 ? value : roundDown(value + align - 1, align);
}
