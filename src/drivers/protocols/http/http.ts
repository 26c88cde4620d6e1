/**
 * http and https: a resource on a web server, read only.
 *
 * Options (QMP reference, BlockdevOptionsCurlHttp(s)): url, readahead, timeout, username, password-secret,
 * proxy-username, proxy-password-secret, cookie, cookie-secret, sslverify; force-range is what always happens. Beyond the
 * original's: connections, retries, retry-delay, in-order. Reads go through windows (../../prefetch) to a source
 * (source.ts), which asks for ranges; a server without ranges is refused, or read from front to back (in-order.ts).
 * Names are the addresses themselves; what is secret in them is not shown.
 */

import { fillVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import { createReadWindows, type ReadWindows } from '../../prefetch/windows.ts';
import { openInOrder } from './in-order.ts';
import { curlNames, httpNames, httpsNames } from './names.ts';
import { type HttpOptions, openError, readaheadOf, sourceSettings } from './options.ts';
import { openSource } from './source.ts';

/** What is common to drivers of resources that are only read. */
export interface RemoteState {
  readonly sizeBytes: number;
  readonly windows: ReadWindows;
  cancel(): void;
  close(): Promise<void>;
}

export type RemoteNode = BlockNode<RemoteState>;

function makeOpen(scheme: string) {
  return async function open(node: RemoteNode, context: OpenContext): Promise<RemoteState> {
    becomeReadOnly(node, context);
    const options = context.options as HttpOptions;
    const readahead = readaheadOf(options.readahead);
    const settings = sourceSettings(node, scheme, context);
    try {
      const opening = openSource(settings, node.layer.endSignal);
      const source = await node.layer.whileOpening(opening);
      const { sizeBytes } = source.found.validators;
      if (!source.found.hasRanges) {
        await source.close();
        if (options['in-order'] !== true) throw openError("Server does not support 'range' (byte ranges).");
        const inOrder = openInOrder(settings, source.found);
        const windows = createReadWindows({ ...readahead, firstBytes: 0 }, inOrder.read, () => sizeBytes);
        return { sizeBytes, windows, cancel: inOrder.cancel, close: inOrder.close };
      }
      const windows = createReadWindows(readahead, source.read, () => sizeBytes);
      return { sizeBytes, windows, cancel: source.cancel, close: source.close };
    } catch (error) {
      const isOurs = error instanceof BlockError && error.message.startsWith('CURL: ');
      throw isOurs
        ? error
        : openError(error instanceof Error ? error.message : String(error), errnoOf(error));
    }
  };
}

/** Throws when the node is to be written to and may not become read-only. */
export function becomeReadOnly(node: BlockNode, context: OpenContext): void {
  if (node.readOnly) return;
  if (!context.autoReadOnly) throw new BlockError('curl driver does not support writes', { errno: E.EROFS });
  node.readOnly = true;
}

/** Reads; the node's length is in whole sectors, and what is past the resource's own end reads as zeroes. */
export function readRemote(
  { state }: RemoteNode,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const inside = Math.min(bytes, Math.max(0, state.sizeBytes - offset));
  if (inside < bytes) fillVector(sliceVector(vec, inside, bytes - inside), 0);
  return inside === 0 ? Promise.resolve() : state.windows.read(offset, sliceVector(vec, 0, inside));
}

/** Callbacks that all drivers of resources that are only read share. */
export const readOnlyRemote = {
  kind: 'protocol',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  close: ({ state }) => state.close(),
  cancelInFlight: ({ state }) => state.cancel(),
  async reopenPrepare(_node, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly)
      throw new BlockError('curl driver does not support writes', { errno: E.EROFS });
  },
  reopenCommit(node) {
    node.readOnly = true;
  },
  preadv: (node, _guard, offset, bytes, vec) => readRemote(node, offset, bytes, vec),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.data | Status.offsetValid, map: offset, file: node };
  },
  getLength: async ({ state }) => state.sizeBytes,
  getAllocatedFileSize: async () => -1,
} satisfies Partial<BlockDriver<RemoteState>>;

function httpDriver(scheme: 'http' | 'https'): BlockDriver<RemoteState> {
  return {
    name: scheme,
    ...readOnlyRemote,
    ...curlNames,
    ...(scheme === 'http' ? httpNames : httpsNames),
    open: makeOpen(scheme),
  };
}

export const http = httpDriver('http');
export const https = httpDriver('https');
