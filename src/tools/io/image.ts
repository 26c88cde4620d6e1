/** Opening the image of a session, with a temporary image on top where that is asked for. */

import type { BlockNode } from '../../block/graph/node.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import {
  cacheMode,
  type ImageRequest,
  openToolImage,
  type ToolEnvironment,
  warnOfProbedRaw,
} from '../common/environment.ts';
import { openOverlay } from '../common/overlay.ts';
import { definitionOf } from './definition.ts';
import { CommandFailed, type IoSession, type OpenSettings } from './session.ts';

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
    ? await openOverlay(env, request, settings.readOnly, !settings.readOnly)
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
