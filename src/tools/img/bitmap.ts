/** `bitmap`: makes, removes, clears, enables, disables and merges the persistent bitmaps of an image. */

import { lookUpBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { addBitmap, changeBitmap, mergeBitmaps } from '../../commands/bitmap.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import { openNamedImage } from '../common/environment.ts';
import { type CommandContext, checkFormatGiven, readOptions, readSize } from './common/command.ts';
import { BITMAP } from './tables/keeping.ts';

type Action =
  | { readonly kind: 'add' | 'remove' | 'clear' | 'enable' | 'disable' }
  | { readonly kind: 'merge'; readonly from: string };

export async function bitmap(context: CommandContext, words: readonly string[]): Promise<number> {
  const actions: Action[] = [];
  let granularity: number | null = null;
  let source: string | null = null;
  let sourceFormat: string | null = null;
  let format: string | null = null;
  let imageOpts = false;
  const operands = await readOptions(context, BITMAP, words, (name, value) => {
    if (name === 'merge') actions.push({ kind: 'merge', from: value });
    // 0 is as good as none.
    else if (name === 'granularity') granularity = readSize(context.output, 'granularity', value) || null;
    else if (name === 'source') source = value;
    else if (name === 'sourceFormat') sourceFormat = value;
    else if (name === 'format') format = value;
    else if (name === 'imageOpts') imageOpts = true;
    else actions.push({ kind: name });
  });
  if (actions.length === 0)
    throw new BlockError('Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
  if (granularity !== null && !actions.some(({ kind }) => kind === 'add'))
    throw new BlockError('granularity only supported with --add');
  if (sourceFormat !== null && source === null) throw new BlockError('-F only supported with -b');
  if (source !== null && !actions.some(({ kind }) => kind === 'merge'))
    throw new BlockError('Merge bitmap source file only supported with --merge');
  const [filename, name] = operands;
  if (filename === undefined || name === undefined || operands.length !== 2)
    throw new BlockError('Expecting filename and bitmap name');
  checkFormatGiven(imageOpts, format);

  const env = context.environment();
  const image = await openNamedImage(env, { name: filename, format, imageOpts, write: true });
  let from: BlockNode = image.node;
  if (source !== null) {
    const other = await openNamedImage(env, { name: source, format: sourceFormat, imageOpts: false });
    from = other.node;
  }
  for (const action of actions) {
    try {
      await act(image.node, name, action, granularity, from);
    } catch (error) {
      throw prefixed(`Operation ${action.kind} on bitmap ${name} failed: `, error);
    }
  }
  await image.close();
  return 0;
}

async function act(
  { layer, name: nodeName }: BlockNode,
  name: string,
  action: Action,
  granularity: number | null,
  source: BlockNode,
): Promise<void> {
  if (action.kind === 'add') {
    // More than fits the number of the command's argument is no power of 2 for it.
    const size = granularity === null ? {} : { granularity: granularity >= 2 ** 32 ? 0 : granularity };
    await addBitmap(layer, nodeName, name, { ...size, persistent: true });
  } else if (action.kind === 'merge') {
    mergeBitmaps(layer, nodeName, name, [{ node: source.name, name: action.from }]);
  } else {
    await changeBitmap(lookUpBitmap(layer, nodeName, name), action.kind);
  }
}
