/**
 * A temporary image on top of another one: what is written is gone at the end, also after a crash.
 */

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, unlinkSync } from 'node:fs';
import path from 'node:path';
import type { DriverOptions } from '../../block/contract/image.ts';
import {
  type ImageRequest,
  openToolImage,
  openToolNode,
  type ToolEnvironment,
  type ToolImage,
} from './environment.ts';

/** Where temporary images go when TMPDIR is not set: they can be large. */
const TEMPORARY_FOLDER = '/var/tmp';

/** Opens the image read-only, and on top of it a temporary one, whose file has no name any more. */
export async function openOverlay(
  env: ToolEnvironment,
  request: ImageRequest,
  readOnly: boolean,
  resizable: boolean,
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
    return await openToolImage(env, { ...rest, write: !readOnly, resize: resizable, definition });
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
