/** What a run of qblock-io keeps between commands. */

import type { DriverOptions } from '../../block/contract/image.ts';
import type { ToolEnvironment, ToolImage } from '../common/environment.ts';

/** How an image is opened; `open` and the command line fill it in. */
export interface OpenSettings {
  /** Null: `options` alone say what is opened. */
  readonly name: string | null;
  readonly format: string | null;
  readonly readOnly: boolean;
  readonly forceShare: boolean;
  readonly cache: string;
  readonly unmap: boolean;
  /** threads, native or io_uring; null: what the file driver chooses. */
  readonly aio: string | null;
  /** Writes go to a temporary image on top. */
  readonly snapshot: boolean;
  readonly copyOnRead: boolean;
  /** More options of the node, values as text. */
  readonly options: DriverOptions;
}

export interface IoSession {
  readonly env: ToolEnvironment;
  image: ToolImage | null;
  /** How `image` was opened: reopen starts from here. */
  opened: OpenSettings | null;
  /** Buffers are moved off their alignment. */
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
