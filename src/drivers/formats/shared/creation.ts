/**
 * What the making of images has in common, whatever the format: nodes named or defined by the options, the backends
 * that keep them meanwhile, and the tools' way, which makes the file first.
 *
 * Not here: what is written into the file (each format's own create.ts).
 */

import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import type { BlockBackend } from '../../../block/backend.ts';
import type { CreateOptionValues, CreateProgress, DriverOptions } from '../../../block/contract/image.ts';
import { Perm } from '../../../block/contract/request.ts';
import { findNode } from '../../../block/graph/find-node.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { protocolOptions } from '../../../block/open/image-name.ts';
import { openFromOptions } from '../../../block/open/open.ts';
import { BlockError } from '../../../errors/error.ts';
import { CREATE_OWNER, createProtocolFile, removeProtocolFile } from '../../protocols/protocol-create.ts';

/** What a node is used for while an image is written into it: nobody is kept out by that alone. */
export const WRITING = { perm: Perm.write | Perm.resize, shared: Perm.all } as const;

/** A node named by the options, or opened for the creation only; kept alive by a backend that takes nothing. */
export async function takeNode(layer: BlockLayer, reference: unknown): Promise<BlockBackend> {
  const node =
    typeof reference === 'string'
      ? findNode(layer, reference)
      : await openFromOptions(layer, reference as DriverOptions);
  return layer.createBackend(node, { perm: 0, shared: Perm.all }, CREATE_OWNER);
}

/** Runs `action` with a backend that is closed afterwards; of two errors the action's is the one that counts. */
export async function withBackend<T>(
  opened: Promise<BlockBackend>,
  action: (backend: BlockBackend) => Promise<T>,
): Promise<T> {
  const backend = await opened;
  let result: T;
  try {
    result = await action(backend);
  } catch (error) {
    await backend.close().catch(() => undefined);
    throw error;
  }
  await backend.close();
  return result;
}

/**
 * Creates an image in the node that `reference` names or defines: `check` throws for options that cannot be, `write`
 * is given a backend that may write and resize. The command is answered before anything waits.
 */
export async function createInNode(
  layer: BlockLayer,
  reference: unknown,
  progress: CreateProgress,
  check: () => void,
  write: (file: BlockBackend) => Promise<void>,
): Promise<void> {
  // A definition has to be opened, which is I/O.
  if (typeof reference !== 'string') await progress.checked?.();
  await withBackend(takeNode(layer, reference), async ({ node }) => {
    check();
    await withBackend(layer.createBackend(node, WRITING, CREATE_OWNER), async (file) => {
      if (typeof reference === 'string') await progress.checked?.();
      await write(file);
    });
  });
}

/** Writes `data` at `offset` bytes. */
export async function writeAt(file: BlockBackend, offset: number, data: Buffer): Promise<void> {
  if (data.length === 0) return;
  const memory = allocateIoMemory(data.length);
  data.copy(memory.buf);
  await file.pwritev(offset, data.length, vectorOf(memory), 0);
}

// ---- the tools' way ------------------------------------------------------------------------------------------

/**
 * Options that concern the file itself; how long it becomes is decided by the image in it. What a format does with
 * `preallocation` itself is not passed on by it.
 */
function fileValues(values: CreateOptionValues): CreateOptionValues {
  const { nocow, extent_size_hint: hint, preallocation } = values;
  return {
    size: '0',
    ...(preallocation !== undefined && { preallocation }),
    ...(nocow !== undefined && { nocow }),
    ...(hint !== undefined && { extent_size_hint: hint }),
  };
}

/**
 * Makes the files called `filenames`, then the image: `make` is given the options of a node for each. What was made
 * is removed when the image does not come about.
 */
export async function createInFiles(
  layer: BlockLayer,
  filenames: readonly string[],
  values: CreateOptionValues,
  progress: CreateProgress,
  make: (files: readonly DriverOptions[]) => Promise<void>,
): Promise<void> {
  const made: string[] = [];
  try {
    for (const filename of filenames) {
      await createProtocolFile(layer, filename, fileValues(values), progress);
      made.push(filename);
    }
    await make(filenames.map((filename) => protocolOptions(layer, filename)));
  } catch (error) {
    for (const filename of made) removeProtocolFile(layer, filename);
    throw error;
  }
}

/** One of the values of an enumeration of the schema; `name` is what the schema calls the option. */
export function choice<T extends string>(name: string, value: string, choices: readonly T[]): T {
  const found = choices.find((each) => each === value);
  if (found === undefined) throw new BlockError(`Parameter '${name}' does not accept value '${value}'`);
  return found;
}
