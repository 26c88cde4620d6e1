/**
 * Creation on the protocol level as the tools do it: a file name stands for a protocol, whose driver makes the file.
 *
 * Also here: the way of protocols whose objects cannot be made, such as devices. They must be there already and be
 * large enough; "creating" takes the old image away by zeroing its first sector.
 */

import { allocateIoMemory, vectorOf } from '../../aio/memory.ts';
import type { BackendOwner } from '../../block/contract/backend-io.ts';
import {
  type CreateOption,
  type CreateOptionValues,
  type CreateProgress,
  type DriverOptions,
  type ImageCreation,
  sizeOption,
} from '../../block/contract/image.ts';
import { Perm } from '../../block/contract/request.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { protocolOptions, protocolPrefix } from '../../block/open/image-name.ts';
import { openFromOptions } from '../../block/open/open.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { removeHostFile } from './file/create.ts';

const SECTOR_BYTES = 512;
const SIZE_OPTION: CreateOption = { name: 'size', type: 'size', help: 'Virtual disk size' };

/** The user of a node for the time of a creation. */
export const CREATE_OWNER: BackendOwner = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

/** The protocol driver's name that `filename` stands for. */
function protocolOf(layer: BlockLayer, filename: string): string {
  // json: describes nodes, not something that could be made.
  if (protocolPrefix(filename) === 'json') throw new BlockError("Unknown protocol 'json'");
  return String(protocolOptions(layer, filename).driver);
}

/** Makes the file (or prepares the device) that `filename` names. Values of other layers are ignored. */
export async function createProtocolFile(
  layer: BlockLayer,
  filename: string,
  values: CreateOptionValues,
  progress: CreateProgress,
): Promise<void> {
  const protocol = protocolOf(layer, filename);
  const creation = (await layer.driver(protocol))?.creation;
  if (creation === undefined) {
    throw new BlockError(`Protocol driver '${protocol}' does not support image creation`, {
      errno: E.ENOTSUP,
    });
  }
  await creation.createFile(layer, filename, values, progress);
}

/** Removes what createProtocolFile made, where that is possible; what was there before does not come back. */
export function removeProtocolFile(layer: BlockLayer, filename: string): void {
  if (protocolOf(layer, filename) === 'file') removeHostFile(filename);
}

/** Creation for a protocol whose files have a name and a size, and nothing else to choose. */
export function sizedFileCreation<Location>(
  parseName: (filename: string) => DriverOptions,
  create: (layer: BlockLayer, location: Location, sizeBytes: number) => Promise<void>,
): ImageCreation {
  return {
    create: (layer, options) => create(layer, options.location as Location, Number(options.size)),
    options: [SIZE_OPTION],
    createFile: (layer, filename, values) =>
      create(layer, parseName(filename) as Location, sizeOption(values)),
  };
}

/** Creation for a protocol whose objects exist already. */
export function existingCreation(protocol: string): ImageCreation {
  return {
    options: [
      SIZE_OPTION,
      { name: 'preallocation', type: 'string', help: 'Preallocation mode (allowed values: off)' },
    ],
    createFile: (layer, filename, values) => prepareExisting(layer, protocol, filename, values),
  };
}

async function prepareExisting(
  layer: BlockLayer,
  protocol: string,
  filename: string,
  values: CreateOptionValues,
): Promise<void> {
  const preallocation = values.preallocation ?? 'off';
  if (preallocation !== 'off')
    throw new BlockError(`Unsupported preallocation mode '${preallocation}'`, { errno: E.ENOTSUP });
  const node = await openExisting(layer, protocol, filename);
  const backend = await layer.createBackend(
    node,
    { perm: Perm.write | Perm.resize, shared: Perm.all },
    CREATE_OWNER,
  );
  try {
    const size = Number(values.size ?? 0);
    await backend.truncate(size, false, 'off');
    const bytes = Math.min(SECTOR_BYTES, await backend.getLength());
    if (bytes === 0) return;
    const memory = allocateIoMemory(bytes);
    memory.buf.fill(0);
    await backend.pwritev(0, bytes, vectorOf(memory), 0);
  } finally {
    await backend.close();
  }
}

async function openExisting(layer: BlockLayer, protocol: string, filename: string) {
  try {
    return await openFromOptions(layer, { ...protocolOptions(layer, filename), driver: protocol });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(
      `Protocol driver '${protocol}' does not support image creation, and opening the image failed: ${error.message}`,
      { errno: error.errno, ...(error.hint !== undefined && { hint: error.hint }) },
    );
  }
}
