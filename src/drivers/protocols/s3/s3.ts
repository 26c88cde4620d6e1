/**
 * s3: an object in an S3 bucket.
 *
 * Options: bucket, key, endpoint, region, path-style, access-key-id, secret-access-key and session-token (ids of secret
 * objects; without them the environment's), sslverify, and those of http: readahead, timeout, connections, retries,
 * retry-delay. Reading is http's (../http/source.ts) with signed ranges.
 *
 * Objects cannot be changed, only made anew. Making an image announces it: an empty object with the length in its
 * metadata. A node opened for writing on such an object takes writes from front to back (upload.ts); the object is there
 * when every byte has been written and the node is flushed or closed.
 * Source of the facts: Amazon S3 API reference.
 */

import type { IoVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { DriverOptions } from '../../../block/contract/image.ts';
import { Req, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import { createCancelScope } from '../../net/cancel.ts';
import { retryPolicy } from '../../net/retry.ts';
import { createReadWindows } from '../../prefetch/windows.ts';
import { type RemoteState, readOnlyRemote, readRemote } from '../http/http.ts';
import { createDispatchers } from '../http/library.ts';
import { connectionsOf, type HttpOptions, readaheadOf, requestHeaders, timeoutOf } from '../http/options.ts';
import { proxyFor } from '../http/proxy.ts';
import { openSource, type SourceSettings } from '../http/source.ts';
import { sizedFileCreation } from '../protocol-create.ts';
import { callS3, type S3Calls } from './calls.ts';
import { exactName, parseName, s3Names } from './names.ts';
import { type S3Options, type S3Target, s3Target } from './target.ts';
import { createUpload, type Upload } from './upload.ts';

interface S3State extends RemoteState {
  /** Null: the object is read only. */
  readonly upload: Upload | null;
}

type S3Node = BlockNode<S3State>;
type Options = S3Options & HttpOptions;

/** Metadata of an object that is to become an image: its length in bytes. */
const SIZE_HEADER = 'x-amz-meta-image-size';
const NOT_ANNOUNCED = 'Objects can only be written when they are made';

function openError(error: unknown): BlockError {
  const text = error instanceof Error ? error.message : String(error);
  return new BlockError(`S3: Error opening object: ${text.replace(/^S3: /, '')}`, { errno: errnoOf(error) });
}

// ---- settings ------------------------------------------------------------------------------------------------

function connectionSettings(options: Options) {
  return {
    connections: connectionsOf(options.connections),
    timeoutMs: timeoutOf(options.timeout),
    verifiesTls: options.sslverify ?? true,
    proxyFor: (url: URL) => proxyFor(url, process.env, { username: undefined, password: undefined }),
    policy: retryPolicy(options as unknown as DriverOptions),
  };
}

function sourceSettings(
  node: S3Node,
  context: OpenContext,
  options: Options,
  target: S3Target,
): SourceSettings {
  return {
    ...connectionSettings(options),
    url: target.url,
    // What redirects to another server must not carry our signature there.
    headers: async (url, range) =>
      url.origin === target.url.origin
        ? requestHeaders(range, await target.sign('GET', url, {}))
        : requestHeaders(range, {}),
    engine: context.engine,
    warn: (text) => node.layer.report(`warning: Node '${node.name}': ${text}\n`),
  };
}

function callsFor(layer: BlockLayer, options: Options): S3Calls {
  const settings = connectionSettings(options);
  return {
    target: s3Target(options, layer, process.env),
    dispatchers: createDispatchers(settings),
    policy: settings.policy,
    scope: createCancelScope(),
  };
}

interface ObjectHead {
  readonly sizeBytes: number;
  /** The length that it was announced with; null: it is an object like any other. */
  readonly announcedBytes: number | null;
}

async function headOf(calls: S3Calls): Promise<ObjectHead> {
  const { head } = await callS3(calls, { method: 'HEAD' });
  const announced = head.header(SIZE_HEADER);
  return {
    sizeBytes: Number(head.header('content-length') ?? Number.NaN),
    announcedBytes: announced !== undefined && /^\d{1,15}$/.test(announced) ? Number(announced) : null,
  };
}

// ---- open, close ---------------------------------------------------------------------------------------------

async function open(node: S3Node, context: OpenContext): Promise<S3State> {
  const options = context.options as unknown as Options;
  const readahead = readaheadOf(options.readahead);
  const { layer } = node;
  const calls = callsFor(layer, options);
  const giveUp = (): void => calls.scope.close();
  layer.endSignal.addEventListener('abort', giveUp);
  let writing = false;
  try {
    const { sizeBytes, announcedBytes } = await layer.whileOpening(headOf(calls));
    if (!node.readOnly && announcedBytes !== null) {
      writing = true;
      return writingState(node, calls, announcedBytes);
    }
    becomeReadOnly(node, context);
    if (sizeBytes === 0) return emptyState(announcedBytes);
    const settings = sourceSettings(node, context, options, calls.target);
    const source = await layer.whileOpening(openSource(settings, layer.endSignal));
    const { validators } = source.found;
    const windows = createReadWindows(readahead, source.read, () => validators.sizeBytes);
    const { cancel, close } = source;
    return { sizeBytes: validators.sizeBytes, windows, cancel, close, upload: null };
  } catch (error) {
    throw openError(error);
  } finally {
    layer.endSignal.removeEventListener('abort', giveUp);
    if (!writing) await calls.dispatchers.close();
  }
}

function becomeReadOnly(node: S3Node, context: OpenContext): void {
  if (node.readOnly) return;
  if (!context.autoReadOnly) throw new BlockError(NOT_ANNOUNCED, { errno: E.EROFS });
  node.readOnly = true;
}

/** Servers do not agree on what a range of nothing is, so none is asked for. */
function emptyState(announcedBytes: number | null): S3State {
  // What was announced and has not come is no image of zeroes.
  if (announcedBytes !== null && announcedBytes > 0)
    throw new BlockError('The object has not been written', { errno: E.ENODATA });
  const windows = createReadWindows(
    { firstBytes: 0, maxBytes: 0 },
    async () => undefined,
    () => 0,
  );
  return { sizeBytes: 0, windows, cancel: () => undefined, close: async () => undefined, upload: null };
}

function writingState(node: S3Node, calls: S3Calls, sizeBytes: number): S3State {
  const upload = createUpload(calls, sizeBytes);
  return {
    sizeBytes,
    windows: createReadWindows({ firstBytes: 0, maxBytes: 0 }, upload.read, () => sizeBytes),
    upload,
    cancel: () => calls.scope.cancelAll(),
    close: () => closeUpload(node, upload, calls),
  };
}

async function closeUpload(node: S3Node, upload: Upload, calls: S3Calls): Promise<void> {
  try {
    if (upload.whole) {
      await upload.finish();
      return;
    }
    await upload.abandon();
    node.layer.report(
      `warning: Node '${node.name}': not every byte of the object was written, so it was not made\n`,
    );
  } finally {
    calls.scope.close();
    await calls.dispatchers.close();
  }
}

// ---- I/O -----------------------------------------------------------------------------------------------------

function writableOf({ state }: S3Node): Upload {
  if (state.upload === null) throw new BlockError(NOT_ANNOUNCED, { errno: E.EROFS });
  return state.upload;
}

async function pwritev(
  node: S3Node,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  if (offset + bytes > node.state.sizeBytes)
    throw new BlockError('Write beyond the end', { errno: E.ENOSPC });
  if (bytes > 0) await writableOf(node).write(offset, bytes, vec);
}

async function pwriteZeroes(node: S3Node, _guard: unknown, offset: number, bytes: number): Promise<void> {
  const inside = Math.min(bytes, node.state.sizeBytes - offset);
  if (inside > 0) await writableOf(node).write(offset, inside, null);
}

async function truncate(node: S3Node, _guard: unknown, length: number, exact: boolean): Promise<void> {
  const { sizeBytes } = node.state;
  if (length > sizeBytes || (exact && length !== sizeBytes))
    throw new BlockError('Objects cannot be resized', { errno: E.ENOTSUP });
}

// ---- create --------------------------------------------------------------------------------------------------

/** Puts an empty object that says how long the image will be. */
async function announce(layer: BlockLayer, options: Options, sizeBytes: number): Promise<void> {
  const calls = callsFor(layer, options);
  const giveUp = (): void => calls.scope.close();
  layer.endSignal.addEventListener('abort', giveUp);
  try {
    await callS3(calls, {
      method: 'PUT',
      headers: { [SIZE_HEADER]: String(sizeBytes), 'content-type': 'application/octet-stream' },
      body: Buffer.alloc(0),
    });
  } finally {
    layer.endSignal.removeEventListener('abort', giveUp);
    await calls.dispatchers.close();
  }
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const s3: BlockDriver<S3State> = {
  ...readOnlyRemote,
  name: 's3',
  ...s3Names,
  supportedZeroFlags: Req.mayUnmap,
  strongOptions: ['bucket', 'key', 'endpoint', 'region', 'path-style', 'access-key-id', 'secret-access-key'],
  exactFilename: ({ settings }) => exactName(settings.options),
  creation: sizedFileCreation<Options>(parseName, announce),
  open,
  close: ({ state }) => state.close(),
  cancelInFlight: ({ state }) => state.cancel(),
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && state.upload === null)
      throw new BlockError(NOT_ANNOUNCED, { errno: E.EROFS });
  },
  reopenCommit(node) {
    if (node.state.upload === null) node.readOnly = true;
  },
  preadv: (node, _guard, offset, bytes, vec) => readRemote(node, offset, bytes, vec),
  pwritev,
  pwriteZeroes,
  flush: async ({ state }) => state.upload?.flush(),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.data | Status.offsetValid, map: offset, file: node };
  },
  truncate,
  getLength: async ({ state }) => state.sizeBytes,
};
