/** `convert`: the command line, and what it asks for. Opening and making the target is convert/target.ts. */

import { infoOrNull } from '../../../block/io/callbacks.ts';
import { BlockError } from '../../../errors/error.ts';
import { openNamedImage, type ToolEnvironment } from '../../common/environment.ts';
import { createProgress, type Progress, progressMode } from '../../common/progress.ts';
import { openPacked, packingOf } from '../../common/unpacked.ts';
import {
  type CommandContext,
  checkFormatGiven,
  joinOptions,
  readOptions,
  readSize,
  sourceCache,
} from '../common/command.ts';
import { asksForHelp, findFormat } from '../common/creation.ts';
import { loadSnapshot, parseSnapshotParam, type SnapshotParam } from '../common/snapshot-param.ts';
import { printHelp } from '../create.ts';
import { CONVERT } from '../tables/making.ts';
import { copyBitmaps } from './bitmaps.ts';
import { Copy, PIECE_BYTES, type Source } from './copy.ts';
import { openTarget, type TargetRequest } from './target.ts';

const DEFAULT_SPARSE_BYTES = 4096;
const MAX_SPARSE_BYTES = 16 * 1024 * 1024;
const DEFAULT_COROUTINES = 8;
const MAX_COROUTINES = 16;
const SECTOR_BYTES = 512;

type Name = keyof typeof CONVERT.options;

/** Options that are given or not. */
type Switches = Partial<Record<Name, boolean>>;

interface Request {
  readonly switches: Switches;
  readonly format: string | null;
  readonly outFormat: string | null;
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  readonly options: string | null;
  readonly snapshot: SnapshotParam | null;
  /** Bytes; null: the default. */
  readonly sparse: number | null;
  readonly targetCache: string;
  readonly sourceCache: string;
  readonly coroutines: number;
  readonly rate: number;
  /** What is attached to -p; null: not given. */
  readonly progress: string | null;
  /** Folder for images that do not go through a pipe from front to back. */
  readonly spool: string | null;
  readonly operands: readonly string[];
}

export async function convert(context: CommandContext, words: readonly string[]): Promise<number> {
  const request = await readRequest(context, words);
  const { switches, options, operands } = request;
  const outFormat = request.outFormat ?? 'raw';
  checkSwitches(request);
  if (options !== null && asksForHelp(options)) {
    await printHelp(context, outFormat, operands.at(-1) ?? null);
    return 0;
  }
  if (operands.length < 2) throw new BlockError('Must specify image file name');
  const names = operands.slice(0, -1);
  if (request.backingFile !== null && names.length > 1) {
    throw new BlockError(
      'Having a backing file for the target makes no sense when concatenating multiple input images',
    );
  }
  // Standard output may be the image's.
  const isStdout = operands.at(-1) === '-';
  const mode = progressMode(request.progress, switches.quiet === true);
  const progress = createProgress(context.output, isStdout && mode === 'line' ? 'none' : mode, 1, isStdout);
  try {
    progress.set(0);
    checkFormatGiven(switches.imageOpts === true, request.format);
    if (!(await runThroughPipe(context, request, names, progress)))
      await run(context, request, names, progress);
    return 0;
  } finally {
    progress.end();
  }
}

async function readRequest(context: CommandContext, words: readonly string[]): Promise<Request> {
  const { output } = context;
  const switches: Switches = {};
  const values: Partial<Record<Name, string>> = {};
  let options: string | null = null;
  let snapshot: SnapshotParam | null = null;
  let sparse: number | null = null;
  let coroutines = DEFAULT_COROUTINES;
  let rate = 0;
  const operands = await readOptions(context, CONVERT, words, (name, value) => {
    if (name === 'options') options = joinOptions(options, value);
    else if (name === 'snapshot') snapshot = parseSnapshotParam(output, value);
    else if (name === 'sparse') sparse = readSparse(context, value);
    else if (name === 'coroutines') coroutines = readCoroutines(value);
    else if (name === 'rate') rate = readSize(output, 'rate limit', value);
    else if (name === 'backingFileNew') values.backingFile = value;
    else if (CONVERT.options[name].argument || name === 'progress') values[name] = value;
    else switches[name] = true;
  });
  return {
    switches,
    format: values.format ?? null,
    outFormat: values.outFormat ?? null,
    backingFile: values.backingFile ?? null,
    backingFormat: values.backingFormat ?? null,
    options,
    snapshot,
    sparse,
    targetCache: values.targetCache ?? 'unsafe',
    sourceCache: values.sourceCache ?? 'writeback',
    coroutines,
    rate,
    progress: values.progress ?? null,
    spool: values.spool ?? null,
    operands,
  };
}

function readSparse({ output }: CommandContext, value: string): number {
  const bytes = readSize(output, 'buffer size for sparse output', value);
  if (bytes % SECTOR_BYTES === 0 && bytes <= MAX_SPARSE_BYTES) return bytes;
  throw new BlockError(
    `Invalid buffer size for sparse output specified. Valid sizes are multiples of ${SECTOR_BYTES} up to ` +
      `${MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
  );
}

function readCoroutines(value: string): number {
  const count = /^\s*\+?(0x[0-9a-f]{1,8}|\d{1,9})$/i.test(value) ? Number(value) : 0;
  if (count >= 1 && count <= MAX_COROUTINES) return count;
  throw new BlockError(
    `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_COROUTINES}`,
  );
}

/** Options that exclude one another, in the order in which the original finds them. */
function checkSwitches({ switches, options, sparse }: Request): void {
  const rules: readonly (readonly [boolean | undefined, string])[] = [
    [switches.skipCreate !== true && switches.targetImageOpts, '--target-image-opts requires use of -n flag'],
    [
      switches.skipBrokenBitmaps === true && switches.bitmaps !== true,
      'Use of --skip-broken-bitmaps requires --bitmaps',
    ],
    [switches.skipCreate === true && options !== null, '-o has no effect when skipping image creation'],
    [switches.skipCreate !== true && switches.targetIsZero, '--target-is-zero requires use of -n flag'],
    [switches.offload === true && sparse !== null, 'Cannot enable copy offloading when -S is used'],
    [switches.offload === true && switches.compress, 'Cannot enable copy offloading when -c is used'],
    [switches.offload === true && switches.salvage, 'Cannot use copy offloading in salvaging mode'],
  ];
  for (const [applies, message] of rules) if (applies === true) throw new BlockError(message);
}

/** Whether what comes has to lie somewhere: it is not read from front to back, or the target is made for a length. */
async function mustKeepInput(
  { format, outFormat, switches }: Request,
  env: ToolEnvironment,
): Promise<boolean> {
  if (format !== 'raw') return true;
  if (switches.skipCreate === true || switches.targetImageOpts === true) return false;
  return (await findFormat(env.layer, outFormat ?? 'raw')).truncate === undefined;
}

/** Whether what goes has to lie somewhere, because it is not written from front to back. */
function mustKeepOutput({ outFormat, switches }: Request): boolean {
  return (outFormat ?? 'raw') !== 'raw' || switches.compress === true;
}

/** One of the ends is a pipe; false: neither is. */
async function runThroughPipe(
  context: CommandContext,
  request: Request,
  names: readonly string[],
  progress: Progress,
): Promise<boolean> {
  const { isPipe, convertFromPipe, convertToPipe } = await import('./pipe.ts');
  const to = isPipe(request.operands.at(-1)!);
  const from = names.some(isPipe);
  if (!from && !to) return false;
  if (request.spool !== null) {
    const keepsInput = from && (to || (await mustKeepInput(request, context.environment())));
    const keepsOutput = to && (from || mustKeepOutput(request));
    if (keepsInput || keepsOutput) {
      await runBySpool(context, request, request.spool, { from, to }, progress);
      return true;
    }
  }
  if (from && to)
    throw new BlockError('Only one end of a conversion can be a pipe, or both with --spool FOLDER');
  if (names.length > 1 || request.snapshot !== null || request.switches.bitmaps === true)
    throw new BlockError('A pipe goes from one image to one, without snapshots and bitmaps');
  const leastZeroBytes = request.sparse ?? DEFAULT_SPARSE_BYTES;
  const source = {
    name: names[0]!,
    format: request.format,
    imageOpts: request.switches.imageOpts === true,
    rate: request.rate,
    leastZeroBytes,
  };
  const target = targetRequest(request, 0, leastZeroBytes);
  if (from) await convertFromPipe(context.environment(), source, target, progress);
  else await convertToPipe(context.environment(), source, target, progress);
  return true;
}

/** With a file in the user's folder in place of each end that is a pipe. */
async function runBySpool(
  context: CommandContext,
  request: Request,
  folder: string,
  pipes: { readonly from: boolean; readonly to: boolean },
  progress: Progress,
): Promise<void> {
  const { isPipe } = await import('./pipe.ts');
  const { checkSpoolable, receivedInto, sentFrom } = await import('./spool.ts');
  const end = request.operands.at(-1)!;
  if (pipes.to) checkSpoolable(request.backingFile);
  const send = (sources: readonly string[]): Promise<void> => {
    const make = (file: string): Promise<void> =>
      run(context, { ...request, operands: [...sources, file] }, sources, progress);
    return pipes.to ? sentFrom(folder, end, progress, make) : make(end);
  };
  const sources = request.operands.slice(0, -1);
  if (!pipes.from) return send(sources);
  const [pipe, more] = sources.filter(isPipe);
  if (more !== undefined) throw new BlockError('Only one source of a conversion can be a pipe');
  return receivedInto(folder, pipe!, request.format === 'raw', progress, (file) =>
    send(sources.map((name) => (name === pipe ? file : name))),
  );
}

async function run(
  context: CommandContext,
  request: Request,
  names: readonly string[],
  progress: Progress,
): Promise<void> {
  const env = context.environment();
  const sources = await openSources(env, request, names);
  if (request.snapshot?.either !== undefined && sources.length > 1)
    throw new BlockError('No support for concatenating multiple snapshot');
  const totalBytes = sources.reduce((sum, { bytes }) => sum + bytes, 0);
  if (request.snapshot !== null) await loadSnapshot(sources[0]!.image, request.snapshot);
  const { switches } = request;
  const sparse = request.sparse ?? DEFAULT_SPARSE_BYTES;
  const target = await openTarget(env, targetRequest(request, totalBytes, sparse), sources);
  const targetNode = target.image.node;
  // Blocks of zeroes are worth a hole where the target can have one.
  const alignmentBytes = Math.max(
    2 ** Math.floor(Math.log2(sparse || 1)),
    targetNode.limits.requestAlignment,
  );
  const copy = new Copy({
    sources,
    totalBytes,
    target: target.image,
    targetIsZero: target.isZero,
    targetBackingBytes: target.backingBytes,
    zeroes: sparse === 0 ? null : { alignmentBytes, leastBytes: sparse },
    offload: switches.offload === true,
    compressBytes: target.compressBytes,
    coroutines: request.coroutines,
    inOrder: switches.anyOrder !== true,
    salvage: switches.salvage === true,
    rate: request.rate,
    // Warnings are about what is salvaged.
    output: switches.quiet === true ? { ...context.output, warn: () => undefined } : context.output,
    progress,
  });
  await copy.run();
  if (switches.bitmaps === true) copyBitmaps(sources[0]!.image.node, targetNode, context.output);
  await target.image.close();
}

async function openSources(
  env: ToolEnvironment,
  request: Request,
  names: readonly string[],
): Promise<readonly Source[]> {
  const cache = sourceCache(request.sourceCache);
  const sources: Source[] = [];
  let start = 0;
  const imageOpts = request.switches.imageOpts === true;
  for (const name of names) {
    const packing = imageOpts || request.format !== null ? null : packingOf(name);
    const image = await openNamedImage(env, {
      name,
      cache,
      imageOpts,
      forceShare: request.switches.forceShare === true,
      format: request.format,
      ...(packing !== null && { opener: (layer) => openPacked(layer, name, packing) }),
    });
    const { node } = image;
    const clusterBytes = (await infoOrNull(node))?.clusterSizeBytes ?? 0;
    const alignmentBytes = Math.max(clusterBytes, node.limits.requestAlignment);
    sources.push({ image, start, bytes: node.totalBytes, alignmentBytes });
    start += node.totalBytes;
  }
  if (start > Number.MAX_SAFE_INTEGER || start < 0) throw new BlockError('The images are too large');
  return sources;
}

function targetRequest(request: Request, totalBytes: number, sparse: number): TargetRequest {
  const { switches, operands } = request;
  return {
    name: operands.at(-1)!,
    format: request.outFormat,
    imageOpts: switches.targetImageOpts === true,
    skipCreate: switches.skipCreate === true,
    knownZero: switches.targetIsZero === true,
    compress: switches.compress === true,
    bitmaps: switches.bitmaps === true,
    skipBrokenBitmaps: switches.skipBrokenBitmaps === true,
    unmap: sparse > 0,
    backingFile: request.backingFile,
    backingFormat: request.backingFormat,
    options: request.options,
    cache: request.targetCache,
    bytes: totalBytes,
    pieceBytes: PIECE_BYTES,
  };
}
