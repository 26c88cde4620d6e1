/** `create`: makes an empty image. */

import type { BlockDriver } from '../../block/contract/driver.ts';
import { relativeName } from '../../block/open/image-name.ts';
import { creationOptions, findProtocol, formattingLine } from '../../block/open/new-image-text.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, errnoOf, prefixed } from '../../errors/error.ts';
import { openToolImage, type ToolEnvironment } from '../common/environment.ts';
import {
  type CommandContext,
  EarlyExit,
  joinOptions,
  readOptions,
  readSize,
  UsageError,
} from './common/command.ts';
import {
  asksForHelp,
  checkCreatable,
  findFormat,
  optionHelp,
  parseValues,
  setBacking,
  type Values,
} from './common/creation.ts';
import { CREATE } from './tables/making.ts';

interface Request {
  readonly filename: string;
  readonly format: string;
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  readonly options: string | null;
  /** Bytes; null: by -o or the backing image. */
  readonly size: number | null;
  readonly quiet: boolean;
  /** The backing image is not looked at. */
  readonly unsafe: boolean;
}

export async function create(context: CommandContext, words: readonly string[]): Promise<number> {
  let format = 'raw';
  let backingFile: string | null = null;
  let backingFormat: string | null = null;
  let options: string | null = null;
  let quiet = false;
  let unsafe = false;
  const operands = await readOptions(context, CREATE, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'backingFile') backingFile = value;
    else if (name === 'backingFormat' || name === 'backingFormatNew') backingFormat = value;
    else if (name === 'options') options = joinOptions(options, value);
    else if (name === 'quiet') quiet = true;
    else unsafe = true;
  });
  const [filename, sizeText, extra] = operands;
  if (options !== null && asksForHelp(options)) {
    await printHelp(context, format, filename ?? null);
    return 0;
  }
  if (filename === undefined) throw new UsageError('Expecting image file name');
  const size = sizeText === undefined ? null : readSize(context.output, 'image size', sizeText);
  if (extra !== undefined) throw new UsageError(`Unexpected argument: ${extra}`);
  const request = { filename, format, backingFile, backingFormat, options, size, quiet, unsafe };
  try {
    await createImage(context, request);
  } catch (error) {
    throw prefixed(`${filename}: `, error);
  }
  return 0;
}

/** Prints the options of a format; with a file name those of its protocol too. */
export async function printHelp(
  context: CommandContext,
  format: string,
  filename: string | null,
): Promise<void> {
  const { layer } = context.environment();
  const driver = await findFormat(layer, format);
  if (driver.creation === undefined)
    throw new BlockError(`Format driver '${format}' does not support image creation`);
  const { output } = context;
  if (filename === null) {
    output.print(`Supported ${format} options:\n${optionHelp(creationOptions(driver, null))}\n`);
    output.print('The protocol level may support further options.\n');
    output.print('Specify the target filename to include those options.\n');
    return;
  }
  const protocol = await findProtocol(layer, filename);
  checkCreatable(driver, protocol);
  output.print(`Supported options:\n${optionHelp(creationOptions(driver, protocol))}`);
}

async function createImage(context: CommandContext, request: Request): Promise<void> {
  const env = context.environment();
  const { filename, format } = request;
  const driver = await findFormat(env.layer, format);
  const protocol = await findProtocol(env.layer, filename);
  checkCreatable(driver, protocol);
  const options = creationOptions(driver, protocol);
  const values = parseValues(options, request.options);
  if (request.size !== null) {
    if (values.has('size')) throw new BlockError('The image size must be specified only once');
    values.set('size', BigInt(request.size).toString());
  }
  setBacking(values, options, format, request);
  await checkBacking(env, filename, values, request.unsafe);
  if (!values.has('size')) throw new BlockError('Image creation needs a size parameter');
  if (!request.quiet) env.output.print(formattingLine(filename, format, options, values));
  await makeImage(env, driver, filename, values);
}

/** Makes the image; the errors are those of the driver, but for a size that is too large. */
export async function makeImage(
  env: ToolEnvironment,
  driver: BlockDriver,
  filename: string,
  values: Values,
): Promise<void> {
  try {
    const progress = { update: () => undefined };
    await driver.creation!.createFile(env.layer, filename, Object.fromEntries(values), progress);
  } catch (error) {
    if (errnoOf(error) !== E.EFBIG) throw error;
    const hasClusters = driver.creation!.options.some(({ name }) => name === 'cluster_size');
    const advice = hasClusters ? ' (try using a larger cluster size)' : '';
    throw new BlockError(`The image size is too large for file format '${driver.name}'${advice}`, {
      errno: E.EFBIG,
    });
  }
}

/** Looks at the backing image, unless told not to, and takes its size when no other is given. */
async function checkBacking(
  env: ToolEnvironment,
  filename: string,
  values: Values,
  unsafe: boolean,
): Promise<void> {
  const name = values.get('backing_file');
  if (name === undefined) return;
  if (name === '') throw new BlockError('Expected backing file name, got empty string');
  if (name === filename) {
    throw new BlockError('Error: Trying to create an image with the same filename as the backing file');
  }
  const format = values.get('backing_fmt') ?? null;
  const missingFormat = 'Backing file specified without backing format';
  if (unsafe) {
    if (format === null) throw new BlockError(missingFormat);
    return;
  }
  const backing = await openBacking(env, relativeName(filename, name), format);
  try {
    if (format === null) {
      env.output.error(`${filename}: ${missingFormat}`);
      // The original leaves its line open.
      env.output.note(`Detected format of ${backing.node.driver.name}.`);
      throw new EarlyExit(1);
    }
    if (!values.has('size')) values.set('size', String(backing.node.totalBytes));
  } finally {
    await backing.close();
  }
}

async function openBacking(env: ToolEnvironment, name: string, format: string | null) {
  try {
    return await openToolImage(env, { name, format, imageOpts: false });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const hint = `${error.hint === undefined ? '' : `${error.hint}\n`}Could not open backing image.`;
    throw new BlockError(error.message, { errno: error.errno, hint });
  }
}
