/**
 * Commands of schema/config.json: the running configuration, saved.
 *
 * Here: what is saved and how the file is replaced. Not here: reading it again (daemon/config).
 */

import { randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { ObjectOptions, XSavedConfig } from '../../schema/generated/types.ts';
import { savedNodes } from '../block/query/saved-options.ts';
import { errnoError, errnoOf } from '../errors/error.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** The configuration as it is now. */
export function currentConfig({ objects, layer, exports, jobs }: CommandContext): XSavedConfig {
  const omitted: string[] = [];
  const isOpenSecret = (options: ObjectOptions): boolean =>
    options['qom-type'] === 'secret' && options.data !== undefined && options.keyid === undefined;
  const saved = objects.savedOptions().filter((options) => {
    if (!isOpenSecret(options)) return true;
    omitted.push(
      `secret '${options.id}': its data would stand in the file in the clear; make it with 'file'`,
    );
    return false;
  });
  for (const node of layer.nodes) {
    for (const bitmap of node.dirtyBitmaps.all) {
      if (!bitmap.persistent && bitmap.name !== null)
        omitted.push(`bitmap '${bitmap.name}' of node '${node.name}': it is not persistent`);
    }
  }
  for (const job of jobs.jobs) omitted.push(`job '${job.id ?? ''}': jobs do not outlive the daemon`);
  const nbdServer = exports.nbdServerOptions;
  const config = {
    object: saved,
    blockdev: savedNodes(layer, (driver) => driver in layer.drivers),
    ...(nbdServer !== null && { 'nbd-server': nbdServer }),
    export: exports.savedOptions(),
  };
  return { config, omitted };
}

/** Replaces the file as a whole: whoever reads it finds the old configuration or the new one, also after a crash. */
export async function writeConfig(filename: string, config: unknown): Promise<void> {
  const temporary = path.join(
    path.dirname(filename),
    `.${path.basename(filename)}.${randomBytes(6).toString('hex')}`,
  );
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(`${JSON.stringify(config, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, filename);
    const folder = await open(path.dirname(filename), 'r');
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw errnoError(`Could not write '${filename}'`, errnoOf(error));
  }
}

export const configCommands = {
  'x-config-save': async (context, { filename = context.configFile ?? undefined }) => {
    const saved = currentConfig(context);
    if (filename !== undefined) await writeConfig(path.resolve(filename), saved.config);
    return saved;
  },
} satisfies Handlers<CommandContext, 'x-config-save'>;
