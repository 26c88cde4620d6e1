/**
 * What every image tool works in: a block layer with the drivers, objects from --object, and images opened the way a
 * command line names them.
 */

import { createEngine } from '../../aio/create-engine.ts';
import { exitProcess } from '../../aio/host/exit.ts';
import type { BlockBackend } from '../../block/backend.ts';
import type { BackendOwner } from '../../block/contract/backend-io.ts';
import type { BlockDriver, OpenPurpose } from '../../block/contract/driver.ts';
import type { LazyDriver } from '../../block/contract/face.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { Perm, Req } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { BlockLayer } from '../../block/layer.ts';
import { protocolOptions, protocolPrefix } from '../../block/open/image-name.ts';
import { openFromOptions, openImage } from '../../block/open/open.ts';
import { drivers } from '../../drivers/table.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import type { ObjectTree } from '../../objects/tree.ts';
import { parseJsonText } from '../../qmp/json-parse.ts';
import { parseFlatOptions } from './flat-options.ts';
import type { ToolOutput } from './output.ts';

export interface ToolEnvironment {
  readonly layer: BlockLayer;
  /** What --object has made; null when it was never given. */
  objects: ObjectTree | null;
  readonly output: ToolOutput;
  /** --untrusted: images open no files that only they name, and are not probed. */
  untrusted: boolean;
  /** Images that are open. */
  readonly images: Set<ToolImage>;
  /** Closes every image that is still open, and the engine. Throws what the first of them could not write. */
  close(): Promise<void>;
}

/** What only the tools have: see unpacked.ts and pieces.ts. */
const UNPACKED: LazyDriver = {
  name: 'unpacked',
  kind: 'protocol',
  load: async () => (await import('./unpacked.ts')).unpacked as BlockDriver,
};

const PIECES: LazyDriver = {
  name: 'pieces',
  kind: 'protocol',
  load: async () => (await import('./pieces.ts')).pieces as BlockDriver,
};

export function createEnvironment(output: ToolOutput): ToolEnvironment {
  const { engine } = createEngine('auto');
  const env: ToolEnvironment = {
    objects: null,
    untrusted: false,
    output,
    images: new Set(),
    layer: new BlockLayer({
      engine,
      // There are no jobs and no monitors: nobody is told.
      events: { emit: () => undefined },
      drivers: { ...drivers, unpacked: UNPACKED, pieces: PIECES },
      report: (text) => output.note(`${output.program}: ${text}`),
      note: (text) => output.note(text),
      print: (text) => output.print(text),
      fatal(text) {
        output.note(text);
        exitProcess(1);
      },
      secret(id) {
        if (env.objects === null) throw new BlockError(`No secret with id '${id}'`);
        return env.objects.secret(id);
      },
      tlsCreds(id) {
        if (env.objects === null) throw new BlockError(`No TLS credentials with id '${id}'`);
        return env.objects.tlsCreds(id, 'client');
      },
      checkPrManager(id) {
        if (env.objects === null) throw new BlockError(`No persistent reservation manager with id '${id}'`);
        env.objects.checkPrManager(id);
      },
      definitions: {
        parseJson: parseJsonText,
        async complete(layer, options, settings) {
          const { definitionReader } = await import('./image-options.ts');
          return definitionReader.complete(layer, options, settings);
        },
      },
      useThrottleGroup: (id) => env.objects?.useThrottleGroup(id) ?? null,
    }),
    async close() {
      let failure: { readonly error: unknown } | undefined;
      const attempt = async (close: () => Promise<void>): Promise<void> => {
        try {
          await close();
        } catch (error) {
          failure ??= { error };
        }
      };
      for (const image of env.images) await attempt(() => image.close());
      await attempt(() => env.layer.closeAll());
      engine.close();
      if (failure !== undefined) throw failure.error;
    },
  };
  // A tool is all command line.
  env.layer.allowInheritedFd = true;
  env.layer.mayWaitInCalls = true;
  // Nor is there anybody whom a disk that cannot keep up would hold up.
  env.layer.slowWriteMs = Number.POSITIVE_INFINITY;
  return env;
}

// A tool runs for the blink of an eye: what few command lines need is loaded when one needs it.

/** --object. True: help was asked for and printed; the tool ends then. */
export async function addObject(env: ToolEnvironment, text: string): Promise<boolean> {
  const { addToolObject } = await import('./objects.ts');
  return addToolObject(env, text);
}

// ---- cache modes ---------------------------------------------------------------------------------------------

export interface CacheMode {
  /** O_DIRECT. */
  readonly direct: boolean;
  /** Flushes are ignored. */
  readonly noFlush: boolean;
  /** Every write is on stable storage when it completes. */
  readonly writeThrough: boolean;
}

const CACHE_MODES: Readonly<Record<string, CacheMode>> = {
  none: { direct: true, noFlush: false, writeThrough: false },
  off: { direct: true, noFlush: false, writeThrough: false },
  writeback: { direct: false, noFlush: false, writeThrough: false },
  writethrough: { direct: false, noFlush: false, writeThrough: true },
  directsync: { direct: true, noFlush: false, writeThrough: true },
  unsafe: { direct: false, noFlush: true, writeThrough: false },
};

/** The cache mode of that name; null: there is none. */
export function cacheMode(name: string): CacheMode | null {
  return Object.hasOwn(CACHE_MODES, name) ? CACHE_MODES[name]! : null;
}

// ---- images --------------------------------------------------------------------------------------------------

export interface ImageRequest {
  /** A file name, a pseudo-protocol name, or with `imageOpts` the options of a node. */
  readonly name: string;
  readonly imageOpts: boolean;
  /** Null: probed. */
  readonly format: string | null;
  readonly write?: boolean;
  readonly resize?: boolean;
  /** -U: other processes may write to the image meanwhile. */
  readonly forceShare?: boolean;
  readonly cache?: CacheMode;
  /** Discards and unmapping zero writes reach the file. */
  readonly unmap?: boolean;
  /** The image's own backing file is left closed. */
  readonly noBacking?: boolean;
  readonly purpose?: OpenPurpose;
  /** More options of the node, by the schema's names. */
  readonly options?: DriverOptions;
  /** Opens the node in a way of its own, instead of all that. */
  readonly opener?: (layer: BlockLayer) => Promise<BlockNode>;
  /** Defines the node as an option text does, instead of name and format; values may be text. */
  readonly definition?: DriverOptions;
}

export interface ToolImage {
  readonly name: string;
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  /** Flags that every write takes: Req.fua in the writethrough modes. */
  readonly writeFlags: number;
  /** Flushes and closes the image. */
  close(): Promise<void>;
}

const OWNER: BackendOwner = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

function nodeSettings({ untrusted }: ToolEnvironment, request: ImageRequest): DriverOptions {
  const { cache } = request;
  return {
    ...(untrusted && { untrusted }),
    'read-only': request.write !== true,
    ...(request.forceShare === true && { 'force-share': true }),
    ...(cache !== undefined && { cache: { direct: cache.direct, 'no-flush': cache.noFlush } }),
    discard: request.unmap === true ? 'unmap' : 'ignore',
    ...(request.noBacking === true && { backing: null }),
    ...request.options,
  };
}

/** Opens an image. The error names what is wrong, not the image: see openNamedImage. */
export async function openToolImage(env: ToolEnvironment, request: ImageRequest): Promise<ToolImage> {
  const node = await openToolNode(env, request);
  try {
    return await useNode(env, request.name, node, request);
  } catch (error) {
    await env.layer.closeNode(node);
    throw error;
  }
}

/** Other permissions and flags for an image that stays open; the old one is gone then, unless this throws. */
export async function withAccess(env: ToolEnvironment, image: ToolImage, access: Access): Promise<ToolImage> {
  const next = await useNode(env, image.name, image.node, access);
  await image.close();
  return next;
}

type Access = Pick<ImageRequest, 'write' | 'resize' | 'purpose' | 'cache'>;

async function useNode(
  env: ToolEnvironment,
  name: string,
  node: BlockNode,
  { write, resize, purpose, cache }: Access,
): Promise<ToolImage> {
  const perm =
    (purpose === 'info' ? 0 : Perm.consistentRead) |
    (write === true ? Perm.write : 0) |
    (resize === true ? Perm.resize : 0);
  const backend = await env.layer.createBackend(node, { perm, shared: Perm.all }, OWNER);
  const image: ToolImage = {
    name,
    node,
    backend,
    writeFlags: cache?.writeThrough === true ? Req.fua : 0,
    close: () => {
      env.images.delete(image);
      return backend.close();
    },
  };
  env.images.add(image);
  return image;
}

/** As openToolImage; errors begin with "Could not open 'NAME': ". */
export async function openNamedImage(env: ToolEnvironment, request: ImageRequest): Promise<ToolImage> {
  try {
    return await openToolImage(env, request);
  } catch (error) {
    throw prefixed(`Could not open '${request.name}': `, error);
  }
}

/** Opens the node of an image, for use below another one; the caller owns it. */
export async function openToolNode(env: ToolEnvironment, request: ImageRequest): Promise<BlockNode> {
  const { layer, output } = env;
  const { name, format, purpose = 'io', definition } = request;
  const settings = nodeSettings(env, request);
  if (request.opener !== undefined) return request.opener(layer);
  if (definition !== undefined) {
    const { openDescribed } = await import('./image-options.ts');
    return openDescribed(layer, definition, settings, purpose);
  }
  if (request.imageOpts) {
    const { nestOptions, openDescribed } = await import('./image-options.ts');
    const { pairs } = parseFlatOptions(name, 'file', (text) => output.warn(text));
    const options = nestOptions(pairs.filter(({ key }) => key !== 'id'));
    return openDescribed(layer, options, settings, purpose);
  }
  if (protocolPrefix(name) === 'json') {
    const { openDescribed } = await import('./image-options.ts');
    const options = protocolOptions(layer, name);
    const onTop = options.driver === undefined ? options : { file: options.file ?? options };
    const described = format === null ? options : { ...onTop, driver: format };
    return openDescribed(layer, described, settings, purpose);
  }
  if (format === null && request.write !== true && /\.ov[af](?:#|$)/i.test(name)) {
    const packaged = await openPackaged(env, name, settings, purpose);
    if (packaged !== null) return packaged;
  }
  if (request.forceShare === true && request.write === true)
    throw new BlockError('force-share=on can only be used with read-only images');
  const node = await openImage(layer, name, format, settings, purpose);
  if (format === null && request.write === true && node.driver.name === 'raw') warnOfProbedRaw(output, name);
  return node;
}

/** The disk of an OVA package or OVF descriptor; null: the name means no such thing. */
async function openPackaged(
  { layer }: ToolEnvironment,
  name: string,
  settings: DriverOptions,
  purpose: OpenPurpose,
): Promise<BlockNode | null> {
  const { checkPackaged, packagedDisk } = await import('./ova.ts');
  const options = await packagedDisk(layer, name);
  if (options === null) return null;
  const node = await openFromOptions(layer, { ...settings, ...options }, purpose);
  try {
    checkPackaged(node);
  } catch (error) {
    await layer.closeNode(node);
    throw error;
  }
  return node;
}

/** Says that a writable image was taken for raw by probing. */
export function warnOfProbedRaw(output: ToolOutput, name: string): void {
  output.note(
    `WARNING: Image format was not specified for '${name}' and probing guessed raw.\n` +
      '         Automatically detecting the format is dangerous for raw images, ' +
      'write operations on block 0 will be restricted.\n' +
      "         Specify the 'raw' format explicitly to remove the restrictions.\n",
  );
}
