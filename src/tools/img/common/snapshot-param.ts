/** The snapshot that -l names: its ID or name, or `snapshot.id=...,snapshot.name=...`; and showing its content. */

import { drained } from '../../../block/graph/drain.ts';
import { BlockError, prefixed } from '../../../errors/error.ts';
import type { ToolImage } from '../../common/environment.ts';
import { parseFlatOptions } from '../../common/flat-options.ts';
import type { ToolOutput } from '../../common/output.ts';

/** What is given must fit; `either`: an ID, or else a name. */
export type SnapshotParam =
  | { readonly either: string }
  | { readonly either?: undefined; readonly id: string | null; readonly name: string | null };

const ID = 'snapshot.id';
const NAME = 'snapshot.name';

export function parseSnapshotParam(output: ToolOutput, text: string): SnapshotParam {
  if (!text.startsWith('snapshot.')) return { either: text };
  let id: string | null = null;
  let name: string | null = null;
  for (const { key, value } of parseFlatOptions(text, null, () => undefined).pairs) {
    if (key === ID) id = value;
    else if (key === NAME) name = value;
    else {
      output.error(`Invalid parameter '${key}'`);
      throw new BlockError(`Failed in parsing snapshot param '${text}'`);
    }
  }
  return { id, name };
}

/** Shows the content of the snapshot in the image, which is open read-only. */
export async function loadSnapshot({ node }: ToolImage, param: SnapshotParam): Promise<void> {
  const { snapshots, name: driver } = node.driver;
  const prefix = 'Failed to load snapshot: ';
  if (snapshots === undefined) {
    const what = 'does not support temporarily loading internal snapshots';
    throw new BlockError(`${prefix}Block format '${driver}' used by device '' ${what}`);
  }
  let { id, name } = param.either === undefined ? param : { id: param.either as string | null, name: null };
  if (param.either !== undefined && !snapshots.list(node).some((one) => one.id === param.either)) {
    id = null;
    name = param.either;
  }
  try {
    await drained(node, () =>
      node.layer.graphLock.withRead((guard) => snapshots.load(node, guard, id, name)),
    );
  } catch (error) {
    throw prefixed(prefix, error);
  }
}
