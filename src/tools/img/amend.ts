/** `amend`: changes format options of an existing image. */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { drained } from '../../block/graph/drain.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { BlockError } from '../../errors/error.ts';
import { openNamedImage } from '../common/environment.ts';
import { createProgress, progressMode } from '../common/progress.ts';
import {
  type CommandContext,
  checkFormatGiven,
  joinOptions,
  readOptions,
  targetCache,
  UsageError,
} from './common/command.ts';
import { asksForHelp, findFormat, optionHelp, parseValues } from './common/creation.ts';
import { AMEND } from './tables/keeping.ts';

export async function amend(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let options: string | null = null;
  let cache = 'writeback';
  let progressValue: string | null = null;
  let quiet = false;
  let imageOpts = false;
  let force = false;
  const operands = await readOptions(context, AMEND, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'options') options = joinOptions(options, value);
    else if (name === 'cache') cache = value;
    else if (name === 'progress') progressValue = value;
    else if (name === 'quiet') quiet = true;
    else if (name === 'force') force = true;
    else imageOpts = true;
  });
  if (options === null) throw new UsageError('Must specify options (-o)');
  const env = context.environment();
  const { output } = context;
  if (format !== null && asksForHelp(options)) {
    output.print(amendHelp(await findFormat(env.layer, format)));
    return 0;
  }
  const name = operands.at(-1);
  if (name === undefined || operands.length !== 1) throw new BlockError('Expecting one image file name');
  const mode = targetCache(cache);
  checkFormatGiven(imageOpts, format);
  const progress = createProgress(output, progressMode(progressValue, quiet), 1);
  try {
    const image = await openNamedImage(env, {
      name,
      format,
      imageOpts,
      cache: mode,
      write: true,
      resize: true,
    });
    const { node } = image;
    if (asksForHelp(options)) {
      output.print(amendHelp(node.driver));
      return 0;
    }
    checkAmendable(node.driver);
    const values = parseValues(
      node.driver.creation?.amendOptions ?? [],
      options,
      node.driver.creation?.options,
    );
    progress.begin('amend', node.totalBytes);
    progress.add(0);
    await drained(node, () =>
      wrapped.amend(node, Object.fromEntries(values), force, {
        update: (done, total) => progress.set(total === 0 ? 0 : (done / total) * 100),
      }),
    );
    await image.close();
    progress.set(100);
    return 0;
  } finally {
    progress.end();
  }
}

function checkAmendable(driver: BlockDriver): void {
  if (driver.amend === undefined || driver.creation?.amendOptions === undefined)
    throw new BlockError(`Format driver '${driver.name}' does not support option amendment`);
}

function amendHelp(driver: BlockDriver): string {
  checkAmendable(driver);
  return `Amend options for '${driver.name}':\n${optionHelp(driver.creation!.amendOptions!)}`;
}
