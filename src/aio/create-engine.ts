/** Chooses the engine at start-up. */

import { BlockError, errnoError } from '../errors/error.ts';
import type { AioEngine, EngineKind } from './engine.ts';
import { createThreadsEngine } from './threads-engine.ts';
import { createUringEngine } from './uring-engine.ts';

export interface EngineChoice {
  readonly engine: AioEngine;
  /** Why io_uring is not used although it was wanted; for the log. */
  readonly fallbackReason?: string;
}

/**
 * Creates an engine. 'auto' takes io_uring and falls back to threads; 'io_uring' throws BlockError when the kernel
 * or a sandbox forbids it.
 */
export function createEngine(kind: 'auto' | EngineKind): EngineChoice {
  if (kind === 'threads') return { engine: createThreadsEngine() };
  try {
    return { engine: createUringEngine() };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const detailed = errnoError(error.message, error.errno);
    if (kind === 'io_uring') throw detailed;
    return { engine: createThreadsEngine(), fallbackReason: detailed.message };
  }
}
