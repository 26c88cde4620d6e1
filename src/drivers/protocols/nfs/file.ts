/** An open file on an NFS server, driven by the library's descriptor. libnfs connects anew by itself. */

import { lookup } from 'node:dns/promises';
import { type ForeignDescriptor, watchForeign } from '../../../aio/libraries/foreign-descriptor.ts';
import { copyOut, forgetNfsCall, type Libnfs, libnfs, nfsCallId } from '../../../aio/libraries/libnfs.ts';
import { allocateIoMemory, vectorOf } from '../../../aio/memory.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { within } from '../../net/within.ts';

export interface NfsOptions {
  readonly server: { readonly type: 'inet'; readonly host: string };
  readonly path: string;
  readonly user?: number | string;
  readonly group?: number | string;
  readonly 'tcp-syn-count'?: number | string;
  readonly 'readahead-size'?: number | string;
  readonly 'page-cache-size'?: number | string;
  readonly debug?: number | string;
}

export interface NfsFile {
  readonly library: Libnfs;
  readonly context: number;
  readonly handle: number;
  readonly readMaxBytes: number;
  readonly writeMaxBytes: number;
  /** Runs a call; its result (0 or more) with what `take` makes of the data within the callback. */
  call<T>(begin: (id: number) => number, take: (result: number, data: number) => T): Promise<T>;
  /** Fails what is under way; what the server does with it is not known. */
  cancel(): void;
  close(): Promise<void>;
}

export type OpenMode = 'read' | 'write' | 'create';

const O_RDWR = 2;
const NEW_FILE_MODE = 0o600;
const RECONNECT_FOREVER = -1;
const PAGE_BYTES = 4096;
const MAX_READAHEAD_BYTES = 1024 * 1024;
const MAX_PAGES = (8 * 1024 * 1024) / 4096;
const MAX_DEBUG = 2;
/** Before a server that does not answer an opening or closing is given up. */
const OPEN_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 1000;

function configure(library: Libnfs, context: number, options: NfsOptions, cached: boolean): void {
  const has = (value: unknown): boolean => value !== undefined;
  if (has(options.user)) library.setUid(context, Number(options.user));
  if (has(options.group)) library.setGid(context, Number(options.group));
  if (has(options['tcp-syn-count'])) library.setSynCount(context, Number(options['tcp-syn-count']));
  const readahead = Number(options['readahead-size'] ?? 0);
  const pages = Number(options['page-cache-size'] ?? 0);
  const needCache = (name: string): never => {
    throw new BlockError(`Cannot enable NFS ${name} if cache.direct = on`, { errno: E.EINVAL });
  };
  if (readahead > 0) {
    if (!cached) needCache('readahead');
    library.setReadahead(context, Math.min(readahead, MAX_READAHEAD_BYTES));
    library.setPageCache(context, Math.ceil(Math.min(readahead, MAX_READAHEAD_BYTES) / PAGE_BYTES));
  }
  if (pages > 0) {
    if (!cached) needCache('pagecache');
    library.setPageCache(context, Math.min(pages, MAX_PAGES));
  }
  if (has(options.debug)) library.setDebug(context, Math.min(Number(options.debug), MAX_DEBUG));
  library.setAutoReconnect(context, RECONNECT_FOREVER);
}

/**
 * Of what a server refuses in a write the library says EFAULT, whatever it is; its text has the right number, such as
 * "NFS: Write failed with NFS3ERR_NOSPC(-28)".
 */
function errnoOfResult(result: number, said: string | null): number {
  const named = result === -E.EFAULT ? /NFS3ERR_\w+\(-(\d+)\)/.exec(said ?? '') : null;
  return named === null ? -result : Number(named[1]);
}

/** Mounts the folder and opens the file in it, or makes it. */
export async function openNfsFile(
  options: NfsOptions,
  mode: OpenMode,
  cached: boolean,
  signal: AbortSignal,
): Promise<NfsFile> {
  const library = libnfs();
  const cut = options.path.lastIndexOf('/');
  if (cut < 0) throw new BlockError('Invalid URL specified', { errno: E.EINVAL });
  const [folder, name] = [options.path.slice(0, cut) || '/', options.path.slice(cut)];
  // The library would look names up within its call, and everything would wait.
  const { address } = await lookup(options.server.host);
  const context = Number(library.initContext());
  if (context === 0) throw new BlockError('Failed to init NFS context', { errno: E.EINVAL });
  const underWay = new Set<(error: Error) => void>();
  let watch: ForeignDescriptor | null = null;
  let isOpen = true;
  let handle = 0;
  /** Calls that are over by the service of the moment. */
  let ended = 0;

  function call<T>(begin: (id: number) => number, take: (result: number, data: number) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      if (!isOpen) {
        reject(ioError(E.ENOTCONN));
        return;
      }
      underWay.add(reject);
      const id = nfsCallId((result, data) => {
        ended++;
        // Given up: nobody waits for the data.
        if (!underWay.delete(reject)) return;
        if (result < 0) reject(ioError(errnoOfResult(result, library.error(context))));
        else resolve(take(result, data));
      });
      if (begin(id) !== 0) {
        forgetNfsCall(id);
        underWay.delete(reject);
        reject(ioError(E.EIO));
        return;
      }
      watch ??= watchForeign({
        descriptor: () => (isOpen ? library.fd(context) : -1),
        wanted: () => library.events(context),
        service(events) {
          ended = 0;
          library.service(context, events);
          return ended;
        },
        underWay: () => underWay.size,
      });
      watch.renew();
    });
  }

  function cancel(): void {
    for (const reject of underWay) reject(ioError(E.ECANCELED));
    underWay.clear();
  }

  function end(): void {
    if (!isOpen) return;
    isOpen = false;
    watch?.close();
    library.destroyContext(context);
    cancel();
  }

  async function step<T>(failed: string, what: string, doing: Promise<T>): Promise<T> {
    try {
      return await within(doing, OPEN_TIMEOUT_MS, signal);
    } catch (error) {
      const errno = error instanceof BlockError ? error.errno : E.EIO;
      const said = errno === E.ETIMEDOUT || errno === E.ECANCELED ? null : library.error(context);
      if (said === null)
        throw new BlockError(`${failed} : ${(error as Error).message}`, { errno, cause: error });
      // As the library's calls that wait put it: the server's refusals by name, anything else is one.
      const mounting = said.startsWith('RPC error') ? `mount_cb: ${said}` : 'nfs_service failed';
      const text =
        what === 'mount' ? `${failed}: ${mounting}` : `${failed} : ${what} call failed with "${said}"`;
      throw new BlockError(text, { errno, cause: error });
    }
  }

  try {
    configure(library, context, options, cached);
    const { done } = library;
    const mounting = call(
      (id) => library.mount(context, address, folder, done, id),
      () => undefined,
    );
    await step('Failed to mount nfs share', 'mount', mounting);
    handle =
      mode === 'create'
        ? await step(
            'Failed to create file',
            'creat',
            call(
              (id) => library.create(context, name, NEW_FILE_MODE, done, id),
              (_result, data) => data,
            ),
          )
        : await step(
            'Failed to open file',
            'open',
            call(
              (id) => library.open(context, name, mode === 'write' ? O_RDWR : 0, done, id),
              (_result, data) => data,
            ),
          );
  } catch (error) {
    end();
    throw error;
  }
  return {
    library,
    context,
    handle,
    readMaxBytes: Number(library.readMax(context)),
    writeMaxBytes: Number(library.writeMax(context)),
    call,
    cancel,
    async close() {
      const closing = call(
        (id) => library.close(context, handle, library.done, id),
        () => undefined,
      );
      await within(closing, CLOSE_TIMEOUT_MS, null).catch(() => undefined);
      end();
    },
  };
}

/** Size and bytes in use of the file, by struct nfs_stat_64. */
export function statFile({
  library,
  context,
  handle,
  call,
}: NfsFile): Promise<{ size: number; used: number }> {
  const SIZE_AT = 7 * 8;
  const USED_AT = 16 * 8;
  const STAT_BYTES = 17 * 8;
  return call(
    (id) => library.stat(context, handle, library.done, id),
    (_result, data) => {
      const memory = allocateIoMemory(STAT_BYTES);
      copyOut(data, STAT_BYTES, vectorOf(memory));
      const stat = memory.buf;
      return { size: Number(stat.readBigUInt64LE(SIZE_AT)), used: Number(stat.readBigUInt64LE(USED_AT)) };
    },
  );
}
