/**
 * null-co and null-aio: a disk without content, for tests and benchmarks.
 *
 * Writes are thrown away. What a read returns is undefined without read-zeroes=on; zeroes are the one answer that
 * cannot show a client what another one's buffer held before. `latency-ns` delays every request. The two differ only by name here; the original has one per I/O interface.
 * Source of the facts: QMP reference, BlockdevOptionsNull.
 */

import { fillVector } from '../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import { Req, Status } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { BlockError } from '../../errors/error.ts';
import { nullAioNames, nullCoNames } from './null-names.ts';

interface NullState {
  length: number;
  readonly latencyMs: number;
  readonly readZeroes: boolean;
}

const DEFAULT_SIZE_BYTES = 1024 ** 3;
const NS_PER_MS = 1e6;

async function open(_node: BlockNode<NullState>, context: OpenContext): Promise<NullState> {
  const options = context.options as {
    readonly size?: number;
    readonly 'latency-ns'?: number;
    readonly 'read-zeroes'?: boolean;
  };
  const latencyNs = options['latency-ns'] ?? 0;
  // The schema's type is unsigned; the original reads it as signed and refuses what turns out negative.
  if (latencyNs < 0 || latencyNs >= 2 ** 63) throw new BlockError('latency-ns is invalid');
  return {
    length: options.size ?? DEFAULT_SIZE_BYTES,
    latencyMs: latencyNs / NS_PER_MS,
    readZeroes: options['read-zeroes'] ?? false,
  };
}

function done({ state }: BlockNode<NullState>): Promise<void> {
  if (state.latencyMs === 0) return Promise.resolve();
  return new Promise((resolve) => setTimeout(resolve, state.latencyMs));
}

function nullDriver(name: 'null-co' | 'null-aio'): BlockDriver<NullState> {
  return {
    name,
    kind: 'protocol',
    ...(name === 'null-co' ? nullCoNames : nullAioNames),
    supportedWriteFlags: Req.fua,
    supportedZeroFlags: Req.fua | Req.mayUnmap,
    strongOptions: ['read-zeroes', 'size'],
    open,
    reopenPrepare: async () => undefined,
    exactFilename({ settings: { options } }) {
      return options.size === undefined && options['read-zeroes'] === undefined ? `${name}://` : null;
    },
    tryPreadv({ state }, _guard, _offset, _bytes, vec) {
      if (state.latencyMs > 0) return false;
      fillVector(vec, 0);
      return true;
    },
    tryPwritev: ({ state }) => state.latencyMs === 0,
    preadv(node, _guard, _offset, _bytes, vec) {
      fillVector(vec, 0);
      return done(node);
    },
    pwritev: (node) => done(node),
    flush: (node) => done(node),
    async blockStatus(node, _guard, _wantZero, offset, bytes) {
      const zero = node.state.readZeroes ? Status.zero : 0;
      return { bytes, flags: Status.offsetValid | zero, map: offset, file: node };
    },
    getLength: async (node) => node.state.length,
    getAllocatedFileSize: async () => 0,
  };
}

export const nullCo = nullDriver('null-co');
export const nullAio = nullDriver('null-aio');
