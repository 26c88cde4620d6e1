/** What the pool and its threads say to each other. */

export type ToThread =
  /** A tool that jobs will name; the description is the entry's business. */
  | { readonly kind: 'open'; readonly tool: number; readonly description: unknown }
  /** Use it on memory at `addr`, which stays where it is until the answer. The entry knows more members. */
  | {
      readonly kind: 'job';
      readonly job: number;
      readonly tool: number;
      readonly addr: number;
      readonly bytes: number;
    }
  | { readonly kind: 'close'; readonly tool: number }
  /** The thread ends by itself. */
  | { readonly kind: 'end' };

/**
 * Words of the memory that a thread shares with the pool. A thread that the process takes down within a native call takes
 * the process along (an addon cannot throw there), so the end of the process waits until it is not busy.
 */
export const Word = {
  /** 1: the thread is starting, or does something; it notifies when it becomes 0. */
  busy: 0,
  /** 1: nothing more is to be begun. */
  stop: 1,
} as const;

/** The end of a job; job 0: the thread is there. */
export interface FromThread {
  readonly job: number;
  readonly error: string | null;
}
