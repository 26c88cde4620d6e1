/** The commands that look at an image or change its size: length, map, alloc, info, truncate. */

import type { PreallocMode } from '../../block/contract/image.ts';
import { Status } from '../../block/contract/request.ts';
import { infoOrNull, wrapped } from '../../block/io/callbacks.ts';
import { strerror } from '../../errors/errno.ts';
import { errnoOf } from '../../errors/error.ts';
import { memberLines } from '../common/member-lines.ts';
import { fail, readArguments, size } from './arguments.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';
import { amount } from './text.ts';

export async function length(session: IoSession): Promise<void> {
  session.env.output.print(`${amount(session.image!.node.totalBytes)}\n`);
}

interface Extent {
  readonly bytes: number;
  readonly allocated: boolean;
}

/** Whether this image (not its backing chain) has something at `offset`, and for how long. */
async function allocation(session: IoSession, offset: number, bytes: number): Promise<Extent> {
  const status = await wrapped.blockStatus(session.image!.node, false, offset, bytes);
  return { bytes: status.bytes, allocated: (status.flags & Status.allocated) !== 0 };
}

/** The longest run of one kind at `offset`. */
async function run(session: IoSession, offset: number, bytes: number): Promise<Extent> {
  let { bytes: total, allocated } = await allocation(session, offset, bytes);
  while (total < bytes) {
    const next = await allocation(session, offset + total, bytes - total);
    if (next.bytes === 0 || next.allocated !== allocated) break;
    total += next.bytes;
  }
  return { bytes: total, allocated };
}

export async function map(session: IoSession): Promise<void> {
  const { node } = session.image!;
  if (node.totalBytes === 0) return;
  for (let offset = 0; offset < node.totalBytes; ) {
    const extent = await run(session, offset, node.totalBytes - offset).catch((error: unknown) => {
      session.env.output.error(`Failed to get allocation status: ${strerror(errnoOf(error))}`);
      throw new CommandFailed();
    });
    if (extent.bytes === 0) fail(session, 'Unexpected end of image');
    const kind = extent.allocated ? '    allocated' : 'not allocated';
    const hex = (value: number): string => `0x${BigInt(value).toString(16)}`;
    session.env.output.print(
      `${amount(extent.bytes)} (${hex(extent.bytes)}) bytes ${kind} at offset ${amount(offset)} (${hex(offset)})\n`,
    );
    offset += extent.bytes;
  }
}

export async function alloc(session: IoSession, words: readonly string[]): Promise<void> {
  const { node } = session.image!;
  const offset = size(session, words[0]!);
  const wanted = words[1] === undefined ? 512 : size(session, words[1]);
  const bytes = Math.max(0, Math.min(wanted, node.totalBytes - offset));
  let found = 0;
  for (let at = 0; at < bytes; ) {
    const extent = await allocation(session, offset + at, bytes - at).catch((error: unknown) =>
      fail(session, `is_allocated failed: ${strerror(errnoOf(error))}`),
    );
    if (extent.bytes === 0) break;
    if (extent.allocated) found += extent.bytes;
    at += extent.bytes;
  }
  session.env.output.print(`${found}/${bytes} bytes allocated at offset ${amount(offset)}\n`);
}

export async function info(session: IoSession): Promise<void> {
  const { node } = session.image!;
  const { output } = session.env;
  const { name, kind, isProtocolFilter } = node.driver;
  output.print(`format name: ${name}\n`);
  // The original tells the name of the format and that of the protocol.
  if (kind === 'protocol' || isProtocolFilter === true) output.print(`format name: ${name}\n`);
  const facts = await infoOrNull(node);
  if (facts === null) throw new CommandFailed();
  output.print(`cluster size: ${amount(facts.clusterSizeBytes)}\n`);
  output.print(`vm state offset: ${amount(facts.vmStateOffset ?? 0)}\n`);
  const specific = node.driver.specificInfo?.(node);
  // Later releases of the original have something to tell of files too.
  if (specific === undefined || specific.type === 'file') return;
  output.print(`${['Format specific information:', ...memberLines(specific.data, '    ')].join('\n')}\n`);
}

const PREALLOC_MODES: readonly string[] = ['off', 'metadata', 'falloc', 'full'];

export async function truncate(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'truncate', words, 'm:');
  const mode = options.get('m') ?? 'off';
  if (!PREALLOC_MODES.includes(mode)) {
    session.env.output.error(`Invalid preallocation mode '${mode}'`);
    throw new CommandFailed();
  }
  if (operands.length !== 1) throw new UsageProblem();
  // A mistake is reported with the first word, as the original does.
  const bytes = size(session, operands[0]!, words[0]);
  try {
    await session.image!.backend.truncate(bytes, false, mode as PreallocMode);
  } catch (error) {
    session.env.output.error(error instanceof Error ? error : strerror(errnoOf(error)));
    throw new CommandFailed();
  }
}
