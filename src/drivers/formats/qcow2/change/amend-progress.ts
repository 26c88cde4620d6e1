/**
 * The progress of an amendment in several stages: each counts in a unit of its own, and what the later ones will take
 * is guessed from those that are done. The numbers are those that the original's tool shows.
 */

import type { CreateProgress } from '../../../../block/contract/image.ts';

/** Tells how much of a stage is done, in any unit. */
export type StageProgress = (done: number, total: number) => void;

export interface Stages {
  /** Begins the next stage. */
  begin(): StageProgress;
}

/** `count`: stages that there will be. */
export function createStages(progress: CreateProgress, count: number): Stages {
  let begun = 0;
  /** Work of the stages before the current one, and of the current one. */
  let before = 0;
  let current = 0;
  return {
    begin() {
      before += current;
      current = 0;
      const earlier = begun++;
      const later = count - begun;
      return (done, total) => {
        current = total;
        const guessed = earlier === 0 ? total * later : (before * later) / earlier;
        progress.update(before + done, before + total + guessed);
      };
    },
  };
}
