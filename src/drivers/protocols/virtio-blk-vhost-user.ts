/**
 * virtio-blk-vhost-user: a disk of a vhost-user-blk back end, such as another storage daemon's export.
 *
 * Option (QMP reference, BlockdevOptionsVirtioBlkVhostUser): path, the back end's socket. A lost connection comes back
 * by itself; requests wait meanwhile. The front end and the rings are src/virtio.
 */

import type { IoVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import { type BlockLimits, type BlockStatus, Req, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { SECTOR_BYTES } from '../../virtio/block.ts';
import { SLOT_DATA_BYTES, VirtioBlockDriver } from '../../virtio/block-driver.ts';
import { Feature, hasFeature } from '../../virtio/ring.ts';

type VirtioNode = BlockNode<VirtioBlockDriver>;

const QUEUES = 1;
const DEPTH = 64;

async function open(node: VirtioNode, context: OpenContext): Promise<VirtioBlockDriver> {
  const path = String(context.options.path);
  const opening = VirtioBlockDriver.open({ path, queues: QUEUES, depth: DEPTH, reconnect: true });
  const driver = await node.layer.whileOpening(opening);
  if (hasFeature(driver.features, Feature.blkReadOnly) && !node.readOnly) {
    if (!context.autoReadOnly) {
      driver.close();
      throw new BlockError('Device is read-only', { errno: E.EACCES });
    }
    node.readOnly = true;
  }
  return driver;
}

function refreshLimits({ state: { config } }: VirtioNode, limits: BlockLimits): void {
  limits.requestAlignment = Math.max(config.blockBytes, SECTOR_BYTES);
  limits.maxTransfer = SLOT_DATA_BYTES;
  limits.maxPdiscard = config.discardSectorsMax * SECTOR_BYTES;
  limits.maxPwriteZeroes = config.writeZeroesSectorsMax * SECTOR_BYTES;
}

const DONE = Promise.resolve();

function preadv(
  { state }: VirtioNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  return bytes === 0 ? DONE : state.read(offset, vec);
}

function pwritev(
  { state }: VirtioNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  return bytes === 0 ? DONE : state.write(offset, vec);
}

async function pwriteZeroes(
  { state }: VirtioNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  if (!hasFeature(state.features, Feature.blkWriteZeroes))
    throw new BlockError('the device writes no zeroes', { errno: E.ENOTSUP });
  await state.changeRange(false, offset, bytes, (flags & Req.mayUnmap) !== 0);
}

async function pdiscard(
  { state }: VirtioNode,
  _guard: unknown,
  offset: number,
  bytes: number,
): Promise<void> {
  if (hasFeature(state.features, Feature.blkDiscard)) await state.changeRange(true, offset, bytes, false);
}

async function blockStatus(
  node: VirtioNode,
  _guard: unknown,
  _wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  return { bytes, flags: Status.data | Status.offsetValid, map: offset, file: node };
}

export const virtioBlkVhostUser: BlockDriver<VirtioBlockDriver> = {
  name: 'virtio-blk-vhost-user',
  kind: 'protocol',
  supportedWriteFlags: 0,
  supportedZeroFlags: Req.mayUnmap | Req.noFallback,
  strongOptions: ['path'],
  open,
  close: async ({ state }) => state.close(),
  refreshLimits,
  preadv,
  pwritev,
  pwriteZeroes,
  pdiscard,
  flush: ({ state }) => (hasFeature(state.features, Feature.blkFlush) ? state.flush() : DONE),
  blockStatus,
  getLength: async ({ state }) => state.config.sizeBytes,
  getAllocatedFileSize: async () => -1,
};
