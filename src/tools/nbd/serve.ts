/** `qblock-nbd FILE`: opens the image and serves it until the last client has gone, or for ever. */

import type { NbdServerOptions, SocketAddress } from '../../../schema/generated/types.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { protocolOptions } from '../../block/open/image-name.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import { ExportTable } from '../../exports/table.ts';
import { ObjectTree } from '../../objects/tree.ts';
import {
  type ImageRequest,
  openToolImage,
  openToolNode,
  type ToolEnvironment,
  type ToolImage,
} from '../common/environment.ts';
import { openOverlay } from '../common/overlay.ts';
import { loadSnapshot, parseSnapshotParam } from '../img/common/snapshot-param.ts';
import type { NbdOptions } from './options.ts';

/** A server at work. */
export interface Service {
  readonly addresses: readonly SocketAddress[];
  /** Resolves when the last client has gone and nobody is to come. */
  readonly ended: Promise<void>;
  /** Disconnects everybody, flushes and closes the image. */
  close(): Promise<void>;
}

export async function serve(
  env: ToolEnvironment,
  options: NbdOptions,
  address: SocketAddress,
): Promise<Service> {
  const { output, layer } = env;
  checkCredentials(env, options);
  const image = await openFile(env, options);
  if (options.loadSnapshot !== null)
    await loadSnapshot(image, parseSnapshotParam(output, options.loadSnapshot));
  const node = await windowOf(env, image, options);
  const objects = env.objects ?? new ObjectTree();
  const exports = new ExportTable(layer, objects, (message, details) => {
    if (options.verbose) output.note(`${output.program}: ${message}${detailText(details)}\n`);
  });
  let end: () => void = () => undefined;
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  const server: NbdServerOptions = {
    addr: address,
    'max-connections': options.shared,
    'handshake-max-seconds': options.handshakeSeconds,
    ...(options.tlsCreds !== null && { 'tls-creds': options.tlsCreds }),
    ...(options.tlsAuthz !== null && { 'tls-authz': options.tlsAuthz }),
  };
  try {
    await exports.startNbdServer(server, 'command-line', () => {
      if (!options.persistent) end();
    });
  } catch (error) {
    throw options.tlsCreds === null ? error : prefixed('Failed to get TLS creds: ', error);
  }
  await exports.add({
    type: 'nbd',
    id: 'export',
    'node-name': node.name,
    name: options.exportName,
    writable: !options.readOnly,
    writethrough: options.cache.writeThrough,
    'allocation-depth': options.allocationDepth,
    bitmaps: [...options.bitmaps],
    ...(options.description !== null && { description: options.description }),
  });
  return {
    addresses: exports.nbdAddresses,
    ended,
    close: async () => {
      await exports.closeAll();
      if (node !== image.node) await layer.closeNode(node);
      await image.close();
    },
  };
}

/** Throws when the credentials are not there, before anything is opened. */
function checkCredentials({ objects }: ToolEnvironment, { tlsCreds }: NbdOptions): void {
  if (tlsCreds === null) return;
  try {
    if (objects === null) throw new BlockError(`No TLS credentials with id '${tlsCreds}'`);
    objects.tlsCreds(tlsCreds, 'server');
  } catch (error) {
    throw prefixed('Failed to get TLS creds: ', error);
  }
}

function detailText(details: Readonly<Record<string, string | number>> = {}): string {
  return Object.entries(details)
    .map(([key, value]) => ` ${key}=${value}`)
    .join('');
}

async function openFile(env: ToolEnvironment, options: NbdOptions): Promise<ToolImage> {
  const { aio, format, imageOpts } = options;
  const name = options.file!;
  const request: ImageRequest = {
    name,
    format,
    imageOpts,
    write: !options.readOnly,
    cache: options.cache,
    unmap: options.unmap,
    options: options.detectZeroes === 'off' ? {} : { 'detect-zeroes': options.detectZeroes },
    ...(aio !== null && !imageOpts && { definition: withAio(env, name, format, aio) }),
  };
  try {
    return options.snapshot
      ? await openOverlay(env, request, options.readOnly, false)
      : await openToolImage(env, request);
  } catch (error) {
    throw prefixed(`Failed to blk_new_open '${name}': `, error);
  }
}

function withAio(
  { layer }: ToolEnvironment,
  name: string,
  format: string | null,
  aio: string,
): DriverOptions {
  const file = protocolOptions(layer, name);
  const hasAio = file.driver === 'file' || file.driver === 'host_device';
  return { ...(format !== null && { driver: format }), file: hasAio ? { ...file, aio } : file };
}

/** The node that is exported: with an offset only what comes behind it. */
async function windowOf(env: ToolEnvironment, image: ToolImage, options: NbdOptions): Promise<BlockNode> {
  const { offset } = options;
  if (offset === 0) return image.node;
  if (offset >= image.node.totalBytes)
    throw new BlockError(
      `Offset (${offset}) cannot be greater than size of the containing file (${image.node.totalBytes})`,
    );
  return openToolNode(env, {
    name: '',
    format: null,
    imageOpts: false,
    write: !options.readOnly,
    unmap: options.unmap,
    definition: { driver: 'raw', offset, file: image.node.name },
  });
}
