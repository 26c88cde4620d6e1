/**
 * vpc: VHD images of Virtual PC, Hyper-V and Azure, fixed, dynamic and differencing; the driver record. The layout is
 * footer.ts.
 *
 * Beyond the original: differencing images are read (by the bitmaps of their blocks), and refused without their parent,
 * which the original reads as if it had none; a lost first sector is made up for by the footer; zeroes punch holes;
 * `azure=on` makes what Azure takes.
 */

import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { formatChildPermissions } from '../../../block/graph/permissions.ts';
import { nodeFilename } from '../../../block/open/filename.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { mappedCallbacks } from '../shared/mapped-driver.ts';
import { chooseParent } from '../shared/parent-paths.ts';
import { readBytes } from '../shared/table-io.ts';
import { creation } from './create.ts';
import {
  DYNAMIC_BYTES,
  type DynamicHeader,
  FOOTER_BYTES,
  type Footer,
  hasCookie,
  parseDynamic,
  parseFooter,
  Type,
} from './footer.ts';
import { createGrowing, createState, map, type VpcNode, type VpcState } from './map.ts';
import { parentNames } from './parent.ts';
import { probeVpc } from './probe.ts';

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** The footer by its copy at the start, else at the end; the oldest images have one of 511 bytes there. */
async function findFooter(file: BlockChild, guard: GraphReadGuard): Promise<Footer> {
  const { totalBytes } = file.node;
  const start = await readBytes(file, guard, 0, FOOTER_BYTES);
  if (hasCookie(start)) return parseFooter(start);
  for (const bytes of [FOOTER_BYTES, FOOTER_BYTES - 1]) {
    if (totalBytes < bytes) continue;
    const end = await readBytes(file, guard, totalBytes - bytes, bytes);
    if (hasCookie(end)) return parseFooter(end);
  }
  throw invalid('invalid VPC image');
}

async function open(node: VpcNode, context: OpenContext): Promise<VpcState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const { graphLock } = node.layer;
  const footer = await graphLock.withRead((guard) => findFooter(file, guard));
  const state = createState(file, footer);
  if (footer.type === Type.fixed) {
    if (footer.diskBytes > file.node.totalBytes)
      throw invalid(`vpc: The disk has ${footer.diskBytes} bytes, the file only ${file.node.totalBytes}`);
    return state;
  }
  const header = await graphLock.withRead((guard) => readDynamic(file, guard, footer));
  state.growing = await graphLock.withRead((guard) => createGrowing(file, guard, footer, header));
  if (footer.type === Type.differencing) await openParent(node, context, state, header);
  return state;
}

async function readDynamic(file: BlockChild, guard: GraphReadGuard, footer: Footer): Promise<DynamicHeader> {
  const fileBytes = file.node.totalBytes;
  if (!(footer.dynamicOffset <= 2 ** 53)) throw invalid('Error reading dynamic VHD header');
  const header = parseDynamic(await readBytes(file, guard, footer.dynamicOffset, DYNAMIC_BYTES));
  if (header.entries * header.blockBytes < footer.diskBytes) throw invalid('Page table too small');
  if (!(header.tableOffset <= 2 ** 53)) throw invalid('Error reading pagetable');
  const blocks = Math.ceil(footer.diskBytes / header.blockBytes);
  if (header.tableOffset < FOOTER_BYTES || header.tableOffset + blocks * 4 > fileBytes) {
    throw invalid(
      'block-vpc: free_data_block_offset points after the end of file. The image has been truncated.',
    );
  }
  return header;
}

/** A differencing image without its parent would show wrong data, so there is no way around it. */
async function openParent(
  node: VpcNode,
  context: OpenContext,
  state: VpcState,
  header: DynamicHeader,
): Promise<void> {
  if (!context.readOnly && !context.autoReadOnly)
    throw new BlockError('vpc: Differencing images can only be opened read-only', { errno: E.ENOTSUP });
  node.readOnly = true;
  const names = await node.layer.graphLock.withRead((guard) => parentNames(state.file, guard, header));
  // The node is not open yet, so its place is looked for with what is there.
  state.parentName = chooseParent(node, names);
  const { parentName } = state;
  const parent = await context.openBacking(
    parentName === null ? null : { filename: parentName, format: 'vpc' },
  );
  if (parent === null) {
    if (context.purpose === 'info') return;
    throw invalid('vpc: Differencing image without its parent');
  }
  const { node: below } = parent;
  if (below.driver.name !== 'vpc') return;
  if ((below.state as VpcState).footer.uuid.equals(header.parentUuid)) return;
  throw invalid(
    `vpc: '${nodeFilename(below)}' is not the parent of this differencing image: its UUID is another`,
  );
}

export const vpc: BlockDriver<VpcState> = {
  name: 'vpc',
  ...mappedCallbacks(map),
  supportsBacking: true,
  probe: probeVpc,
  creation,
  open,
  reopenCommit: () => undefined,
  childPermissions: formatChildPermissions,
  backingName: ({ state }) =>
    state.parentName === null ? null : { filename: state.parentName, format: 'vpc' },
  getLength: async ({ state }) => state.footer.diskBytes,
  getInfo: async ({ state }) => ({ clusterSizeBytes: state.growing?.header.blockBytes ?? 0 }),
};
