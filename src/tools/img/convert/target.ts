/** The target of `convert`: made unless it exists, opened, and what is known of its content. */

import type { BlockDriver } from '../../../block/contract/driver.ts';
import type { DriverOptions } from '../../../block/contract/image.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { infoOrNull } from '../../../block/io/callbacks.ts';
import { backingOf } from '../../../block/io/status-chain.ts';
import { creationOptions, findProtocol } from '../../../block/open/new-image-text.ts';
import { imageInfo } from '../../../block/query/query.ts';
import { BlockError, prefixed } from '../../../errors/error.ts';
import {
  type CacheMode,
  openNamedImage,
  type ToolEnvironment,
  type ToolImage,
} from '../../common/environment.ts';
import { checkFormatGiven, targetCache } from '../common/command.ts';
import { checkCreatable, findFormat, parseValues, setBacking, type Values } from '../common/creation.ts';
import { checkBitmaps, keepsBitmaps } from './bitmaps.ts';
import type { Source } from './copy.ts';

export interface TargetRequest {
  readonly name: string;
  /** Null: raw, or what is found in an image that exists. */
  readonly format: string | null;
  readonly imageOpts: boolean;
  /** The image exists already. */
  readonly skipCreate: boolean;
  /** The user says that it reads as zeroes. */
  readonly knownZero: boolean;
  readonly compress: boolean;
  readonly bitmaps: boolean;
  readonly skipBrokenBitmaps: boolean;
  readonly unmap: boolean;
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  /** Text of -o. */
  readonly options: string | null;
  readonly cache: string;
  /** Length of what is to be copied. */
  readonly bytes: number;
  /** Longest piece that is written at once. */
  readonly pieceBytes: number;
}

export interface Target {
  readonly image: ToolImage;
  readonly isZero: boolean;
  readonly backingBytes: number | null;
  readonly compressBytes: number | null;
}

export async function openTarget(
  env: ToolEnvironment,
  request: TargetRequest,
  sources: readonly Source[],
): Promise<Target> {
  const planned = request.skipCreate ? null : await plan(env, request);
  const driver =
    planned?.driver ?? (request.format === null ? null : ((await env.layer.driver(request.format)) ?? null));
  await checkForBitmaps(request, driver, sources);
  const cache = targetCache(request.cache);
  if (planned !== null) await make(env, planned, request);
  const image = await open(env, request, planned, cache);
  const { node } = image;
  if (node.totalBytes < request.bytes) throw new BlockError('output file is smaller than input file');
  const packs = request.compress || (await infoOrNull(node))?.needsCompressedWrites === true;
  const compressBytes = packs ? await compressionUnit(node, request.pieceBytes) : null;
  const hasBacking = planned?.values.has('backing_file') ?? request.backingFile !== null;
  const fresh = planned !== null && !hasBacking && startsWithZeroes(node, planned.values);
  return {
    image,
    isZero: request.knownZero || fresh,
    backingBytes: hasBacking ? (backingOf(node)?.totalBytes ?? 0) : null,
    compressBytes,
  };
}

interface Plan {
  readonly driver: BlockDriver;
  readonly values: Values;
}

/** What is to be made, with every check that needs no file. */
async function plan(env: ToolEnvironment, request: TargetRequest): Promise<Plan> {
  const { layer } = env;
  const format = request.format ?? 'raw';
  const driver = await findFormat(layer, format);
  const protocol = await findProtocol(layer, request.name);
  checkCreatable(driver, protocol);
  const options = creationOptions(driver, protocol);
  const values = parseValues(options, request.options);
  values.set('size', BigInt(request.bytes).toString());
  setBacking(values, options, format, request);
  if (values.has('backing_file') && !values.has('backing_fmt'))
    throw new BlockError('Use of backing file requires explicit backing format');
  if (request.compress) checkCompressible(driver, values);
  return { driver, values };
}

function checkCompressible(driver: BlockDriver, values: Values): void {
  if (driver.pwritevCompressed === undefined)
    throw new BlockError('Compression not supported for this file format');
  if (values.get('encryption') === 'on' || values.has('encrypt.format'))
    throw new BlockError('Compression and encryption not supported at the same time');
  if ((values.get('preallocation') ?? 'off') !== 'off')
    throw new BlockError('Compression and preallocation not supported at the same time');
}

async function checkForBitmaps(
  { bitmaps, skipBrokenBitmaps }: TargetRequest,
  driver: BlockDriver | null,
  sources: readonly Source[],
): Promise<void> {
  if (!bitmaps) return;
  if (sources.length > 1) throw new BlockError('Copying bitmaps only possible with single source');
  const [source] = sources;
  if (!keepsBitmaps(await imageInfo(source!.image.node))) throw new BlockError('Source lacks bitmap support');
  if (driver !== null && driver.name !== 'qcow2')
    throw new BlockError(`Format driver '${driver.name}' does not support bitmaps`);
  checkBitmaps(source!.image.node, skipBrokenBitmaps);
}

async function make(env: ToolEnvironment, { driver, values }: Plan, request: TargetRequest): Promise<void> {
  const progress = { update: () => undefined };
  try {
    await driver.creation!.createFile(env.layer, request.name, Object.fromEntries(values), progress);
  } catch (error) {
    throw prefixed(`${request.name}: error while converting ${driver.name}: `, error);
  }
}

function open(
  env: ToolEnvironment,
  request: TargetRequest,
  planned: Plan | null,
  cache: CacheMode,
): Promise<ToolImage> {
  checkFormatGiven(request.imageOpts, request.format);
  const format = request.imageOpts ? null : (request.format ?? 'raw');
  return openNamedImage(env, {
    name: request.name,
    imageOpts: request.imageOpts,
    format,
    cache,
    write: true,
    unmap: request.unmap,
    options: planned === null ? {} : keyOptions(planned.values),
  });
}

/** How to open what was made encrypted. */
function keyOptions(values: Values): DriverOptions {
  const inside = values.get('encrypt.key-secret');
  const own = values.get('key-secret');
  return {
    ...(inside !== undefined && { encrypt: { 'key-secret': inside } }),
    ...(own !== undefined && { 'key-secret': own }),
  };
}

/** Whether an image just made reads as zeroes. */
function startsWithZeroes(node: BlockNode, values: Values): boolean {
  if (node.driver.freshIsNoise === true) return false;
  const preallocated = (values.get('preallocation') ?? 'off') !== 'off';
  const encrypted = values.has('encrypt.format') || values.get('encryption') === 'on';
  if (node.driver.supportsBacking === true && !preallocated) return true;
  if (node.driver.supportsBacking === true && encrypted) return false;
  // Only files are made; devices were there before.
  let at: BlockNode | undefined = node;
  while (at !== undefined && at.driver.kind !== 'protocol') at = at.primaryChild?.node;
  return at?.driver.name === 'file';
}

async function compressionUnit(node: BlockNode, pieceBytes: number): Promise<number> {
  if (node.driver.pwritevCompressed === undefined)
    throw new BlockError('Compression not supported for this file format');
  const bytes = (await infoOrNull(node))?.clusterSizeBytes ?? 0;
  if (bytes <= 0 || bytes > pieceBytes) throw new BlockError('invalid cluster size');
  return bytes;
}
