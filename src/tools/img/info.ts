/** `info`: what an image is, and the images below it. */

import path from 'node:path';
import type {
  ImageInfo,
  ImageInfoSpecific,
  ImageInfoSpecificQCow2Encryption,
} from '../../../schema/generated/types.ts';
import type { RefusedOpening } from '../../block/contract/gate.ts';
import { imageInfo } from '../../block/query/query.ts';
import { BlockError } from '../../errors/error.ts';
import { printJsonPretty } from '../../qmp/json-print.ts';
import { openNamedImage, type ToolEnvironment } from '../common/environment.ts';
import {
  type CommandContext,
  checkFormatGiven,
  type OutputFormat,
  outputFormat,
  readOptions,
  UsageError,
} from './common/command.ts';
import { describeImage } from './common/image-text.ts';
import { INFO } from './tables/keeping.ts';

/** A file that an image names, and would have opened. */
interface NamedFile {
  readonly what: string;
  readonly filename: string;
  readonly format?: string;
}

interface Description extends ImageInfo {
  /** With --untrusted. */
  readonly 'would-open'?: readonly NamedFile[];
}

interface Request {
  readonly name: string;
  readonly format: string | null;
  readonly imageOpts: boolean;
  readonly forceShare: boolean;
}

export async function info(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let output: string | null = null;
  let chain = false;
  let imageOpts = false;
  let forceShare = false;
  let limits = false;
  const operands = await readOptions(context, INFO, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'output') output = value;
    else if (name === 'backingChain') chain = true;
    else if (name === 'imageOpts') imageOpts = true;
    else if (name === 'limits') limits = true;
    else forceShare = true;
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  const form: OutputFormat = output === null ? 'human' : outputFormat(output);
  checkFormatGiven(imageOpts, format);
  const found = await chainOf(context, { name, format, imageOpts, forceShare }, chain);
  const infos = found.map((each) => shown(each, limits));
  if (form === 'json') context.output.print(`${jsonText(chain ? infos : infos[0])}\n`);
  else context.output.print(infos.map(describe).join('\n'));
  return 0;
}

function describe({ 'would-open': named, ...image }: Description): string {
  if (named === undefined) return describeImage(image);
  const files = named.map(
    ({ what, filename, format }) => `    ${what}: ${filename}${format === undefined ? '' : ` (${format})`}\n`,
  );
  return `${describeImage(image)}Files that it names:${files.length === 0 ? ' none\n' : `\n${files.join('')}`}`;
}

/** What 7.2 shows of it, and the limits where they are asked for: later releases of the original show more. */
function shown(info: Description, limits: boolean): Description {
  const { limits: own, 'format-specific': specific, ...rest } = info;
  return {
    ...rest,
    ...(specific !== undefined && specific.type !== 'file' && { 'format-specific': without(specific) }),
    ...(limits && own !== undefined && { limits: own }),
  };
}

/** Without what 7.2 does not tell of encryption. */
function without(specific: ImageInfoSpecific): ImageInfoSpecific {
  if (specific.type === 'luks') {
    const { 'detached-header': _, ...data } = specific.data;
    return { type: 'luks', data: data as typeof specific.data };
  }
  if (specific.type !== 'qcow2' || specific.data.encrypt?.format !== 'luks') return specific;
  const { 'detached-header': _, ...encrypt } = specific.data.encrypt;
  return { type: 'qcow2', data: { ...specific.data, encrypt: encrypt as ImageInfoSpecificQCow2Encryption } };
}

/** JSON over several lines, which end in a line feed alone here. */
function jsonText(value: unknown): string {
  return printJsonPretty(value).replaceAll('\r\n', '\n');
}

/** Extents by the names that the image has for them, instead of what stood for the files. */
function withNames(record: ImageInfo, files: readonly RefusedOpening[]): ImageInfo {
  const specific = record['format-specific'];
  if (specific?.type !== 'vmdk') return record;
  const extents = specific.data.extents.map((extent, index) => ({
    ...extent,
    filename: files.find(({ what }) => what === `extents.${index}`)?.filename ?? extent.filename,
  }));
  return { ...record, 'format-specific': { ...specific, data: { ...specific.data, extents } } };
}

/** Describes one image. One that is not trusted opens nothing; what it names is listed. */
async function describedImage(env: ToolEnvironment, request: Request): Promise<Description> {
  const { layer, untrusted } = env;
  const refusals: RefusedOpening[] = [];
  layer.refusals = untrusted ? refusals : null;
  const image = await openNamedImage(env, { ...request, purpose: 'info' });
  try {
    const record = await imageInfo(image.node);
    if (!untrusted) return record;
    const { 'backing-filename': stored, 'full-backing-filename': full } = record;
    const format = record['backing-filename-format'];
    const backing =
      stored === undefined
        ? []
        : [{ what: 'backing file', filename: full ?? stored, ...(format !== undefined && { format }) }];
    return { ...withNames(record, refusals), 'would-open': [...refusals, ...backing] };
  } finally {
    layer.refusals = null;
    await image.close();
  }
}

/** The image's record, and with `chain` those of the images below. */
async function chainOf(context: CommandContext, first: Request, chain: boolean): Promise<Description[]> {
  const env = context.environment();
  const infos: Description[] = [];
  const seen = new Set<string>();
  let request: Request | null = first;
  while (request !== null) {
    const key = request.imageOpts ? request.name : path.resolve(request.name);
    if (seen.has(key)) throw new BlockError(`Backing file '${request.name}' creates an infinite loop.`);
    seen.add(key);
    const record: Description = await describedImage(env, request);
    infos.push(record);
    const below: string | undefined = record['full-backing-filename'];
    if (!chain || record['backing-filename'] === undefined) return infos;
    if (below === undefined) return infos;
    if (env.untrusted)
      throw new BlockError(`The untrusted image names the backing file '${below}', which it may not open`);
    request = {
      name: below,
      format: record['backing-filename-format'] ?? null,
      imageOpts: false,
      forceShare: first.forceShare,
    };
  }
  return infos;
}
