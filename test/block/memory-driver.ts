/** A driver over a Buffer, with limits to choose, that checks how it is called. For tests of the block layer. */

import { createEngine } from '../../src/aio/create-engine.ts';
import { copyFromVector, copyToVector, type IoVector } from '../../src/aio/memory.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { emptyCheckResult } from '../../src/block/contract/image.ts';
import type { BlockLimits } from '../../src/block/contract/request.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { raw } from '../../src/drivers/formats/raw.ts';
import { E } from '../../src/errors/errno.ts';
import { ioError } from '../../src/errors/error.ts';

export interface MemoryDisk {
  readonly data: Buffer;
  readonly limits: Partial<BlockLimits>;
  /** Names of the callbacks as they were called. */
  readonly calls: string[];
  readonly canZero: boolean;
  /** Called in every I/O callback, before it does anything. */
  onCall(name: string): Promise<void> | void;
}

export function memoryDisk(
  bytes: number,
  options: Partial<Omit<MemoryDisk, 'data' | 'calls'>> = {},
): MemoryDisk {
  return {
    data: Buffer.alloc(bytes),
    limits: {},
    calls: [],
    canZero: true,
    onCall: () => undefined,
    ...options,
  };
}

/** A driver that keeps its bytes in `disk`. */
export function memoryDriver(disk: MemoryDisk): BlockDriver {
  const called = async (node: BlockNode, name: string, offset: number, bytes: number): Promise<void> => {
    disk.calls.push(name);
    const { requestAlignment, maxTransfer } = node.limits;
    if (offset % requestAlignment !== 0 || bytes % requestAlignment !== 0)
      throw new Error(`${name} is not aligned`);
    if (maxTransfer > 0 && bytes > maxTransfer && name !== 'pwriteZeroes')
      throw new Error(`${name} is too long`);
    await disk.onCall(name);
    // Other requests get their turn in the middle of every operation.
    await new Promise((resolve) => setImmediate(resolve));
  };
  const checkSegments = (node: BlockNode, vec: IoVector): void => {
    if (vec.segments.length > node.limits.maxIov) throw new Error('too many segments');
  };
  const plain = async (name: string): Promise<void> => {
    disk.calls.push(name);
    await disk.onCall(name);
  };
  return {
    name: 'memory',
    kind: 'protocol',
    supportedWriteFlags: 0,
    supportedZeroFlags: 0,
    open: async () => null,
    refreshLimits: (_node, limits) => void Object.assign(limits, disk.limits),
    async preadv(node, _guard, offset, bytes, vec) {
      checkSegments(node, vec);
      await called(node, 'preadv', offset, bytes);
      copyToVector(vec, disk.data.subarray(offset, offset + bytes));
    },
    async pwritev(node, _guard, offset, bytes, vec) {
      checkSegments(node, vec);
      await called(node, 'pwritev', offset, bytes);
      copyFromVector(vec, disk.data.subarray(offset, offset + bytes));
    },
    async pwriteZeroes(node, _guard, offset, bytes) {
      await called(node, 'pwriteZeroes', offset, bytes);
      if (!disk.canZero) throw ioError(E.ENOTSUP);
      disk.data.fill(0, offset, offset + bytes);
    },
    pdiscard: () => plain('pdiscard'),
    flush: () => plain('flush'),
    async blockStatus(node, _guard, _wantZero, offset, bytes) {
      await plain('blockStatus');
      return { bytes, flags: 1 | 4, map: offset, file: node };
    },
    async getLength() {
      await plain('getLength');
      return disk.data.length;
    },
    async getAllocatedFileSize() {
      await plain('getAllocatedFileSize');
      return disk.data.length;
    },
    async getInfo() {
      await plain('getInfo');
      return { clusterSizeBytes: 0 };
    },
    async isInserted() {
      await plain('isInserted');
      return true;
    },
    eject: () => plain('eject'),
    lockMedium: () => plain('lockMedium'),
    debugEvent: () => plain('debugEvent'),
    truncate: () => plain('truncate'),
    pwritevCompressed: () => plain('pwritevCompressed'),
    async check() {
      await plain('check');
      return emptyCheckResult();
    },
    amend: () => plain('amend'),
    changeBackingFile: () => plain('changeBackingFile'),
    makeEmpty: () => plain('makeEmpty'),
    preadvSnapshot: () => plain('preadvSnapshot'),
    async copyRangeFrom() {
      await plain('copyRangeFrom');
      return false;
    },
    async copyRangeTo() {
      await plain('copyRangeTo');
      return false;
    },
    async blockStatusSnapshot(node, _guard, _wantZero, offset, bytes) {
      await plain('blockStatusSnapshot');
      return { bytes, flags: 1 | 4, map: offset, file: node };
    },
    pdiscardSnapshot: () => plain('pdiscardSnapshot'),
  };
}

/** A layer whose driver `memory` serves `disk`; `raw` can be put on top. */
export function memoryLayer(disk: MemoryDisk): BlockLayer {
  const { engine } = createEngine('threads');
  return new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { memory: memoryDriver(disk), raw },
  });
}
