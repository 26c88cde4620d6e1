/** `check`: looks for errors in an image's metadata, and repairs them when asked. */

import type { ImageCheckResult } from '../../block/contract/image.ts';
import { drained } from '../../block/graph/drain.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { nodeFilename } from '../../block/open/filename.ts';
import { E, strerror } from '../../errors/errno.ts';
import { BlockError, errnoOf } from '../../errors/error.ts';
import { fixed } from '../../qmp/c-numbers.ts';
import { printJsonPretty } from '../../qmp/json-print.ts';
import { openNamedImage } from '../common/environment.ts';
import {
  type CommandContext,
  checkFormatGiven,
  type OutputFormat,
  outputFormat,
  readOptions,
  sourceCache,
  UsageError,
} from './common/command.ts';
import { CHECK } from './tables/keeping.ts';

/** Exit statuses beside 0 and 1. */
const STATUS_CORRUPT = 2;
const STATUS_LEAKS = 3;
const STATUS_UNSUPPORTED = 63;

interface Repair {
  readonly leaks: boolean;
  readonly errors: boolean;
}

const NO_REPAIR: Repair = { leaks: false, errors: false };

function repairOf(value: string): Repair {
  if (value === 'leaks') return { leaks: true, errors: false };
  if (value === 'all') return { leaks: true, errors: true };
  throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${value}`);
}

/** What the command prints: the result of a check with the image's name. */
interface Report {
  readonly filename: string;
  readonly format: string;
  readonly result: ImageCheckResult;
}

export async function check(context: CommandContext, words: readonly string[]): Promise<number> {
  let format: string | null = null;
  let output: string | null = null;
  let cache = 'writeback';
  let repair = NO_REPAIR;
  let quiet = false;
  let imageOpts = false;
  let forceShare = false;
  const operands = await readOptions(context, CHECK, words, (name, value) => {
    if (name === 'format') format = value;
    else if (name === 'repair') repair = repairOf(value);
    else if (name === 'output') output = value;
    else if (name === 'cache') cache = value;
    else if (name === 'quiet') quiet = true;
    else if (name === 'imageOpts') imageOpts = true;
    else forceShare = true;
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  const form: OutputFormat = output === null ? 'human' : outputFormat(output);
  checkFormatGiven(imageOpts, format);
  const image = await openNamedImage(context.environment(), {
    name,
    format,
    imageOpts,
    forceShare,
    cache: sourceCache(cache),
    write: repair.leaks,
    purpose: 'check',
  });
  const checker = new Checker(context, image.node, { form, quiet });
  return checker.run(name, repair);
}

class Checker {
  readonly #context: CommandContext;
  readonly #node: BlockNode;
  readonly #form: OutputFormat;
  readonly #quiet: boolean;

  constructor(context: CommandContext, node: BlockNode, settings: { form: OutputFormat; quiet: boolean }) {
    this.#context = context;
    this.#node = node;
    this.#form = settings.form;
    this.#quiet = settings.quiet;
  }

  /** Lines of the report that are no results. */
  #say(text: string): void {
    if (!this.#quiet && this.#form === 'human') this.#context.output.print(text);
  }

  async run(filename: string, repair: Repair): Promise<number> {
    const { output } = this.#context;
    let report: Report;
    try {
      report = await this.#check(filename, repair);
    } catch (error) {
      if (errnoOf(error) !== E.ENOTSUP) throw error;
      output.error('This image format does not support checks');
      return STATUS_UNSUPPORTED;
    }
    const { corruptionsFixed, leaksFixed } = report.result;
    if (corruptionsFixed > 0 || leaksFixed > 0) {
      this.#say('The following inconsistencies were found and repaired:\n\n');
      this.#say(`    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n`);
      this.#say('Double checking the fixed image now...\n');
      report = await this.#check(filename, NO_REPAIR);
      Object.assign(report.result, { corruptionsFixed, leaksFixed });
    }
    if (!this.#quiet) output.print(this.#form === 'json' ? jsonReport(report) : humanReport(report.result));
    const { checkErrors, corruptions, leaks } = report.result;
    if (checkErrors > 0) {
      return 1;
    }
    if (corruptions > 0) return STATUS_CORRUPT;
    return leaks > 0 ? STATUS_LEAKS : 0;
  }

  async #check(filename: string, repair: Repair): Promise<Report> {
    const node = this.#node;
    const { output } = this.#context;
    let result: ImageCheckResult | undefined;
    await drained(node, async () => {
      try {
        result = await wrapped.check(node, {
          fixLeaks: repair.leaks,
          fixErrors: repair.errors,
          report: (line) => output.note(`${line}\n`),
          reportError: (line) => output.error(line),
        });
      } catch (error) {
        throw new BlockError(`Check failed: ${strerror(errnoOf(error))}`, { errno: errnoOf(error) });
      }
    });
    return {
      filename: filename === '' ? nodeFilename(node) : filename,
      format: node.driver.name,
      result: result!,
    };
  }
}

function jsonReport({ filename, format, result }: Report): string {
  const some = (name: string, count: number): Record<string, number> =>
    count === 0 ? {} : { [name]: count };
  const record = {
    filename,
    format,
    'check-errors': result.checkErrors,
    ...some('image-end-offset', result.imageEndOffset),
    ...some('corruptions', result.corruptions),
    ...some('leaks', result.leaks),
    ...some('corruptions-fixed', result.corruptionsFixed),
    ...some('leaks-fixed', result.leaksFixed),
    ...some('total-clusters', result.totalClusters),
    ...some('allocated-clusters', result.allocatedClusters),
    ...some('fragmented-clusters', result.fragmentedClusters),
    ...some('compressed-clusters', result.compressedClusters),
  };
  return `${printJsonPretty(record).replaceAll('\r\n', '\n')}\n`;
}

function humanReport(result: ImageCheckResult): string {
  const { corruptions, leaks, checkErrors, totalClusters: total, allocatedClusters: allocated } = result;
  let text = '';
  if (corruptions === 0 && leaks === 0 && checkErrors === 0) {
    text += 'No errors were found on the image.\n';
  } else {
    if (corruptions > 0) {
      text += `\n${corruptions} errors were found on the image.\n`;
      text += 'Data may be corrupted, or further writes to the image may corrupt it.\n';
    }
    if (leaks > 0) {
      text += `\n${leaks} leaked clusters were found on the image.\n`;
      text += 'This means waste of disk space, but no harm to data.\n';
    }
    if (checkErrors > 0) text += `\n${checkErrors} internal errors have occurred during the check.\n`;
  }
  if (total !== 0 && allocated !== 0) {
    const percent = (part: number, whole: number): string => fixed((part * 100) / whole, 2);
    text += `${allocated}/${total} = ${percent(allocated, total)}% allocated, `;
    text += `${percent(result.fragmentedClusters, allocated)}% fragmented, `;
    text += `${percent(result.compressedClusters, allocated)}% compressed clusters\n`;
  }
  if (result.imageEndOffset > 0) text += `Image end offset: ${result.imageEndOffset}\n`;
  return text;
}
