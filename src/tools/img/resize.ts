/** `resize`: makes an image longer or shorter. */

import type { PreallocMode } from '../../block/contract/image.ts';
import { BlockError } from '../../errors/error.ts';
import { openNamedImage } from '../common/environment.ts';
import { type CommandContext, checkFormatGiven, readOptions, UsageError } from './common/command.ts';
import { parseSizeValue } from './common/creation.ts';
import { RESIZE } from './tables/keeping.ts';

const MODES: readonly string[] = ['off', 'metadata', 'falloc', 'full'] satisfies PreallocMode[];

function preallocMode(value: string): PreallocMode {
  if (!MODES.includes(value)) throw new BlockError(`Invalid preallocation mode '${value}'`);
  return value as PreallocMode;
}

export async function resize(context: CommandContext, words: readonly string[]): Promise<number> {
  // The last word is the size, so that it may begin with a minus sign.
  const sizeText = words.at(-1);
  if (words.length === 1 && ['-h', '--help'].includes(words[0]!))
    await readOptions(context, RESIZE, words, () => undefined);
  if (sizeText === undefined || words.length < 2) throw new UsageError('Not enough arguments');
  let format: string | null = null;
  let prealloc: PreallocMode = 'off';
  let quiet = false;
  let shrink = false;
  let imageOpts = false;
  const operands = await readOptions(context, RESIZE, words.slice(0, -1), (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'preallocation') prealloc = preallocMode(value);
    else if (name === 'quiet') quiet = true;
    else if (name === 'shrink') shrink = true;
    else imageOpts = true;
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting image file name and size');
  const change = parseChange(sizeText);
  checkFormatGiven(imageOpts, format);
  const image = await openNamedImage(context.environment(), {
    name,
    format,
    imageOpts,
    write: true,
    resize: true,
  });
  const current = image.node.totalBytes;
  const total =
    change.relative === 0 ? change.bytes : BigInt(current) + change.bytes * BigInt(change.relative);
  if (total <= 0n || total >= 2n ** 63n) throw new BlockError('New image size must be positive');
  if (total <= BigInt(current) && prealloc !== 'off')
    throw new BlockError('Preallocation can only be used for growing images');
  const { output } = context;
  if (total < BigInt(current) && !shrink) {
    output.error('Use the --shrink option to perform a shrink operation.');
    output.warn(
      "Shrinking an image will delete all data beyond the shrunken image's end. " +
        'Before performing such an operation, make sure there is no important data there.',
    );
    return 1;
  }
  await image.backend.truncate(Number(total), true, prealloc);
  await image.close();
  if (!quiet) output.print('Image resized.\n');
  return 0;
}

/** A size, or a difference with a sign in front. */
function parseChange(text: string): { readonly relative: -1 | 0 | 1; readonly bytes: bigint } {
  const relative = text.startsWith('+') ? 1 : text.startsWith('-') ? -1 : 0;
  return { relative, bytes: parseSizeValue('size', relative === 0 ? text : text.slice(1)) };
}
