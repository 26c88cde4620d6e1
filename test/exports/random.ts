/** Random numbers that come again with the same seed. */

/** A function that returns whole numbers from 0 to below its argument. */
export function createRandom(seed: number): (below: number) => number {
  let state = seed >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % Math.max(1, Math.floor(below));
  };
}
