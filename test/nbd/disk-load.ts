/**
 * A random load on a node, with a model: workers own stripes of the disk, keep several requests under way, and what
 * they read must be what they wrote last.
 */

import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BlockBackend } from '../../src/block/backend.ts';
import type { BackendOwner } from '../../src/block/contract/backend-io.ts';
import { Perm, Req } from '../../src/block/contract/request.ts';
import type { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import type { Random } from '../drivers/qcow2/random.ts';

const OWNER: BackendOwner = {
  describe: () => 'a test',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

/** A node of the nbd driver and a user of it. */
export async function openNbd(layer: BlockLayer, options: object): Promise<BlockBackend> {
  const node = await addNode(layer, { driver: 'nbd', 'node-name': 'n', discard: 'unmap', ...options });
  const perm = Perm.consistentRead | Perm.write;
  const backend = await layer.createBackend(node, { perm, shared: Perm.all }, OWNER);
  return backend;
}

export async function closeNbd(layer: BlockLayer, backend: BlockBackend): Promise<void> {
  await backend.close();
  await layer.deleteNode('n');
}

export interface LoadSettings {
  readonly workers: number;
  /** Requests per worker. */
  readonly requests: number;
  /** Every offset and length is a multiple of it. */
  readonly unitBytes: number;
  /** What the disk holds; changed along with it. */
  readonly model: Buffer;
  /** Whether a failed request is allowed; what it wrote is then written again. */
  readonly mayFail?: boolean;
}

/** Runs the load; throws when a read returns something else than the model. Returns the number of failed requests. */
export async function runLoad(
  backend: BlockBackend,
  random: Random,
  settings: LoadSettings,
): Promise<number> {
  const stripe =
    Math.floor(settings.model.length / settings.workers / settings.unitBytes) * settings.unitBytes;
  const failures = await Promise.all(
    Array.from({ length: settings.workers }, (_, i) => work(backend, random, settings, i * stripe, stripe)),
  );
  return failures.reduce((sum, each) => sum + each, 0);
}

async function work(
  backend: BlockBackend,
  random: Random,
  { requests, unitBytes, model, mayFail = false }: LoadSettings,
  from: number,
  stripe: number,
): Promise<number> {
  let failed = 0;
  for (let i = 0; i < requests; i++) {
    const units = stripe / unitBytes;
    const at = random.below(units);
    const offset = from + at * unitBytes;
    const limit = random.below(8) === 0 ? units - at : Math.min(units - at, 16);
    const bytes = (1 + random.below(limit)) * unitBytes;
    const memory = allocateIoMemory(bytes);
    const vec = vectorOf(memory, 0, bytes);
    const kind = random.below(10);
    const fua = random.below(4) === 0 ? Req.fua : 0;
    const run = async (): Promise<void> => {
      if (kind < 4) {
        memory.buf.fill(1 + random.below(255));
        if (bytes >= 4) memory.buf.writeUInt32LE(random.below(2 ** 31), 0);
        memory.buf.copy(model, offset, 0, bytes);
        await retried(() => backend.pwritev(offset, bytes, vec, fua));
      } else if (kind === 4) {
        model.fill(0, offset, offset + bytes);
        const unmap = random.below(2) === 0 ? Req.mayUnmap : 0;
        await retried(() => backend.pwriteZeroes(offset, bytes, fua | unmap));
      } else if (kind === 5) {
        await retried(() => backend.flush());
      } else if (kind === 6) {
        await retried(() => checkStatus(backend, model, offset, bytes));
      } else {
        await retried(() => backend.preadv(offset, bytes, vec, 0));
        if (!memory.buf.subarray(0, bytes).equals(model.subarray(offset, offset + bytes)))
          throw new Error(`wrong data at ${offset}, ${bytes} bytes`);
      }
    };
    await run();
  }
  return failed;

  async function retried(action: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        await action();
        return;
      } catch (error) {
        if (!mayFail || (error instanceof Error && error.message.startsWith('wrong'))) throw error;
        failed++;
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    }
  }
}

/** What is said to be zero must be zero. */
async function checkStatus(
  backend: BlockBackend,
  model: Buffer,
  offset: number,
  bytes: number,
): Promise<void> {
  const extent = await backend.blockStatus(offset, bytes);
  if (!(extent.bytes > 0 && extent.bytes <= bytes)) throw new Error(`wrong extent of ${extent.bytes} bytes`);
  if (extent.zero && model.subarray(offset, offset + extent.bytes).some((byte) => byte !== 0))
    throw new Error(`wrong status at ${offset}`);
}
