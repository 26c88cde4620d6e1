/** Opening luks images: the header, by a passphrase the key, and what both say of the content. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { openLuksAny, readLuksInfoAny } from '../../crypto/luks2/open.ts';
import { headerReader } from './io.ts';
import type { LuksNode, LuksState } from './state.ts';

interface LuksOptions {
  readonly 'key-secret'?: string;
  readonly header?: unknown;
}

export async function open(node: LuksNode, context: OpenContext): Promise<LuksState> {
  const options = context.options as LuksOptions;
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const header = (await context.openChild('header', Role.metadata, false)) ?? file;
  const detached = header !== file;
  const secretId = options['key-secret'];
  const forIo = context.purpose === 'io';
  if (context.purpose !== 'info' && secretId === undefined) {
    throw new BlockError("Parameter 'key-secret' is required for cipher", { errno: E.EINVAL });
  }
  // Any bytes are a passphrase: cryptsetup's key files are not text.
  const passphrase = secretId === undefined ? null : node.layer.secret(secretId);
  const { graphLock } = node.layer;
  const read = (offset: number, bytes: number): Promise<Buffer> =>
    graphLock.withRead((guard) => headerReader(header.node as BlockNode, guard)(offset, bytes));
  const base = { file, header, changingKeys: false };
  if (!forIo || passphrase === null) {
    const known = await readLuksInfoAny(read, detached);
    return { ...base, ...known, cipher: null };
  }
  const volume = await openLuksAny(read, passphrase, detached);
  return { ...base, ...volume, sectorBytes: volume.cipher.sectorBytes };
}
