/**
 * Steps of a clean-up. A node that cannot be flushed when it is closed must not keep a job from giving up the others.
 */

/** Takes all steps in order, also after one that fails, and throws the first failure in the end. */
export async function takeAllSteps(...steps: readonly (() => Promise<void> | undefined)[]): Promise<void> {
  let failure: { readonly error: unknown } | null = null;
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failure ??= { error };
    }
  }
  if (failure !== null) throw failure.error;
}
