/** Opening the image of a session, with a temporary image on top where that is asked for. */

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, unlinkSync } from 'node:fs';
import path from 'node:path';
import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import {
  cacheMode,
  type ImageRequest,
  openToolImage,
  openToolNode,
  type ToolEnvironment,
  type ToolImage,
  warnOfProbedRaw,
} from '../common/environment.ts';
import { definitionOf } from './definition.ts';
import { CommandFailed, type IoSession, type OpenSettings } from './session.ts';

/** Where temporary images go when TMPDIR is not set: they can be large. */
const TEMPORARY_FOLDER = '/var/tmp';

/** Opens the image that the settings describe; errors are printed. */
export async function openPrinting(session: IoSession, settings: OpenSettings): Promise<void> {
  const { output } = session.env;
  if (session.image !== null) {
    output.error("file open already, try 'help close'");
    throw new CommandFailed();
  }
  try {
    await openImage(session, settings);
  } catch (error) {
    const device = settings.name === null ? '' : ` device ${settings.name}`;
    output.error(prefixed(`can't open${device}: `, error));
    throw new CommandFailed();
  }
}

/** Opens the image and makes it the session's. */
export async function openImage(session: IoSession, settings: OpenSettings): Promise<void> {
  const { env } = session;
  if (settings.copyOnRead && settings.readOnly && !settings.snapshot)
    throw new BlockError("Can't use copy-on-read on read-only device");
  const request = requestOf(env, settings);
  session.image = settings.snapshot
    ? await openOverlay(env, request, settings.readOnly)
    : await openToolImage(env, request);
  session.opened = settings;
  const { name, format, options, readOnly, snapshot } = settings;
  // With options or an engine given the environment cannot tell that the format was probed.
  const isProbed = name !== null && format === null && options.driver === undefined;
  if (isProbed && !readOnly && !snapshot && request.definition !== undefined && isRaw(session.image.node))
    warnOfProbedRaw(env.output, name);
}

function isRaw(node: BlockNode): boolean {
  return node.driver.name === 'raw';
}

function requestOf(env: ToolEnvironment, settings: OpenSettings): ImageRequest {
  const definition = definitionOf(env.layer, settings);
  const cache = cacheMode(settings.cache);
  const isWritable = !settings.readOnly;
  return {
    name: settings.name ?? '',
    imageOpts: false,
    format: settings.format,
    write: isWritable,
    resize: isWritable,
    forceShare: settings.forceShare,
    unmap: settings.unmap,
    ...(cache !== null && { cache }),
    ...(definition !== null && { definition }),
  };
}

/** Opens the image read-only, and on top of it a temporary one, whose file has no name any more. */
async function openOverlay(
  env: ToolEnvironment,
  request: ImageRequest,
  readOnly: boolean,
): Promise<ToolImage> {
  const base = await openToolNode(env, { ...request, write: false, resize: false });
  let filename: string | null = null;
  try {
    filename = await createOverlay(env, base.totalBytes);
    const definition: DriverOptions = {
      driver: 'qcow2',
      file: { driver: 'file', filename },
      backing: base.name,
      // What is gone after a crash anyway need not be on stable storage.
      cache: { 'no-flush': true },
    };
    const { forceShare: _, cache: __, ...rest } = request;
    return await openToolImage(env, { ...rest, write: !readOnly, resize: !readOnly, definition });
  } catch (error) {
    if (base.parents.length === 0) await env.layer.closeNode(base);
    throw error;
  } finally {
    if (filename !== null) unlinkSync(filename);
  }
}

/** Makes an empty qcow2 image in a new file, for this user only; returns its name. */
async function createOverlay({ layer }: ToolEnvironment, bytes: number): Promise<string> {
  const filename = path.join(
    process.env.TMPDIR || TEMPORARY_FOLDER,
    `qblock-${randomBytes(8).toString('hex')}`,
  );
  // The file must not be anybody else's: it is made here, and filled afterwards.
  closeSync(openSync(filename, 'wx', 0o600));
  try {
    const progress = { update: () => undefined };
    const qcow2 = await layer.driver('qcow2');
    await qcow2!.creation!.createFile(layer, filename, { size: String(bytes) }, progress);
  } catch (error) {
    unlinkSync(filename);
    throw error;
  }
  return filename;
}
