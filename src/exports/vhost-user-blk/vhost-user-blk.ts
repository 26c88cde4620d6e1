/**
 * A node as a virtual machine's disk: an export over vhost-user-blk.
 *
 * Options (QMP reference, BlockExportOptionsVhostUserBlk): addr (unix, or fd on the command line), logical-block-size,
 * num-queues. Here: one export from its checks to the end, and whose turn it is on its socket. Not here: what a front
 * end says (session.ts), rings and requests (src/virtio).
 *
 * One front end is served at a time; others wait until it has gone.
 */

import type { Socket } from 'node:net';
import { takeSocketDescriptor } from '../../aio/descriptors.ts';
import { listenOn } from '../../aio/sockets.ts';
import { Perm } from '../../block/contract/request.ts';
import { BlockError } from '../../errors/error.ts';
import type { ExportEnvironment, ExportHost, ExportType, OptionsOf, RunningExport } from '../contract.ts';
import { type SessionSettings, VhostUserSession } from './session.ts';

const BLOCK_BYTES_MIN = 512;
const BLOCK_BYTES_MAX = 2 * 1024 * 1024;
/** Front ends that wait for their turn. */
const WAITING_MAX = 16;

/** The options of the device; throws in the original's words. */
function checkOptions(options: OptionsOf<'vhost-user-blk'>): { blockBytes: number; queues: number } {
  const { id, addr, 'logical-block-size': blockBytes = BLOCK_BYTES_MIN, 'num-queues': queues = 1 } = options;
  if (addr.type !== 'unix' && addr.type !== 'fd')
    throw new BlockError("Only socket address types 'unix' and 'fd' are supported");
  const place = `Property ${id}.logical-block-size doesn't take value`;
  // 0 stands for the default.
  if (blockBytes !== 0) {
    // What was negative has become large: it is shown as it was, as far as that can be told.
    const shown = blockBytes < 2 ** 63 ? blockBytes : blockBytes - 2 ** 64 || -1;
    if (blockBytes < BLOCK_BYTES_MIN || blockBytes > BLOCK_BYTES_MAX)
      throw new BlockError(`${place} ${shown} (minimum: ${BLOCK_BYTES_MIN}, maximum: ${BLOCK_BYTES_MAX})`);
    if ((blockBytes & (blockBytes - 1)) !== 0)
      throw new BlockError(`${place} '${blockBytes}', it's not a power of 2`);
  }
  if (queues === 0) throw new BlockError('num-queues must be greater than 0');
  return { blockBytes: blockBytes || BLOCK_BYTES_MIN, queues };
}

/** The sockets of an export: who is served, and who waits. */
class FrontEnds {
  readonly #settings: SessionSettings;
  readonly #waiting: Socket[] = [];
  session: VhostUserSession | null = null;
  paused: boolean;
  #stopped = false;

  constructor(settings: SessionSettings, paused: boolean) {
    this.#settings = settings;
    this.paused = paused;
  }

  accept(socket: Socket): void {
    socket.on('error', () => socket.destroy());
    if (this.#stopped || this.#waiting.length >= WAITING_MAX) socket.destroy();
    else this.#waiting.push(socket);
    this.#serveNext();
  }

  #serveNext(): void {
    while (this.session === null && !this.#stopped) {
      const socket = this.#waiting.shift();
      if (socket === undefined) return;
      if (socket.destroyed) continue;
      const fd = takeSocketDescriptor(socket);
      this.session = new VhostUserSession(fd, this.#settings, this.paused, () => {
        this.session = null;
        this.#serveNext();
      });
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    await this.session?.stop();
  }
}

/** Exports over vhost-user-blk. */
export function vhostUserBlkExportType(environment: ExportEnvironment): ExportType<'vhost-user-blk'> {
  const { log, whenServing, mayInheritFds } = environment;
  return {
    permissions: (_options, writable) => ({
      perm: Perm.consistentRead | (writable ? Perm.write : 0),
      // Guests are told of another length.
      shared: Perm.all,
    }),

    async start(options: OptionsOf<'vhost-user-blk'>, host: ExportHost): Promise<RunningExport> {
      const { blockBytes, queues } = checkOptions(options);
      const settings: SessionSettings = {
        io: host.io,
        sizeBytes: () => host.backend.node.totalBytes,
        writable: host.writable,
        writethrough: host.writethrough,
        blockBytes,
        queues,
        id: host.id,
        log,
      };
      const frontEnds = new FrontEnds(settings, host.paused);
      const listener = await listenOn(options.addr, (socket) => whenServing(() => frontEnds.accept(socket)), {
        pauseOnConnect: true,
        allowInheritedFd: mayInheritFds(),
      });
      return {
        get clientCount() {
          return frontEnds.session === null ? 0 : 1;
        },
        // As the original: the guest loses its disk.
        inUse: false,
        setPaused: (paused) => {
          frontEnds.paused = paused;
          frontEnds.session?.setPaused(paused);
        },
        resized: () => frontEnds.session?.resized(),
        stop: async () => {
          listener.close();
          await frontEnds.stop();
        },
      };
    },
  };
}
