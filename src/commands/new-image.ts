/** Images that commands make for their own use, by file name and format, as the image tools do. */

import type { BlockLayer } from '../block/layer.ts';
import { creationOptions, findProtocol, formattingLine } from '../block/open/new-image-text.ts';
import { BlockError } from '../errors/error.ts';

export interface NewImage {
  readonly filename: string;
  readonly format: string;
  readonly sizeBytes: number;
  /** What the image names as its backing image. */
  readonly backing?: { readonly filename: string; readonly format: string } | null;
}

/** Makes the file and the image in it. Throws in the words of the original. */
export async function makeImage(layer: BlockLayer, image: NewImage): Promise<void> {
  const { filename, format, sizeBytes, backing = null } = image;
  const driver = await layer.driver(format);
  if (driver === undefined) throw new BlockError(`Unknown file format '${format}'`);
  const { creation } = driver;
  if (creation === undefined)
    throw new BlockError(`Format driver '${format}' does not support image creation`);
  if (backing !== null && !creation.options.some(({ name }) => name === 'backing_file'))
    throw new BlockError(`Backing file not supported for file format '${format}'`);
  if (backing?.filename === filename)
    throw new BlockError('Error: Trying to create an image with the same filename as the backing file');
  const values = {
    size: BigInt(sizeBytes).toString(),
    ...(backing !== null && { backing_file: backing.filename, backing_fmt: backing.format }),
  };
  const protocol = await findProtocol(layer, filename);
  const options = creationOptions(driver, protocol);
  layer.tell(formattingLine(filename, format, options, new Map(Object.entries(values))));
  await creation.createFile(layer, filename, values, { update: () => undefined });
}
