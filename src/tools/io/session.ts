/** What a run of qblock-io keeps between commands. */

import type { ToolEnvironment, ToolImage } from '../common/environment.ts';

/** How an image is opened; `open` and the command line fill it in. */
export interface OpenSettings {
  readonly name: string;
  readonly imageOpts: boolean;
  readonly format: string | null;
  readonly readOnly: boolean;
  readonly forceShare: boolean;
  readonly cache: string;
  readonly unmap: boolean;
  /** More options of the node, as text. */
  readonly options: Readonly<Record<string, unknown>>;
}

export interface IoSession {
  readonly env: ToolEnvironment;
  image: ToolImage | null;
  /** How `image` was opened: reopen starts from here. */
  opened: OpenSettings | null;
  /** Bytes that buffers are moved off their alignment. */
  readonly misalign: boolean;
  /** Requests of aio_read and aio_write that have not been reported. */
  readonly pending: Set<Promise<void>>;
  failed: boolean;
  ended: boolean;
}

/** A command whose arguments are wrong: its one-line usage is printed. */
export class UsageProblem extends Error {}

/** A command that failed and has said so. */
export class CommandFailed extends Error {}
