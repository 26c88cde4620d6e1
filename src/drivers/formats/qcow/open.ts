/** Opening qcow images. */

import type { OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BackingName } from '../../../block/contract/image.ts';
import { Role } from '../../../block/contract/request.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import type { BlockCipher } from '../../crypto/block-cipher.ts';
import { openAes } from '../../crypto/legacy-aes.ts';
import { passphraseFromSecret } from '../../crypto/passphrase.ts';
import { createSpace } from '../shared/append-space.ts';
import { createFound } from '../shared/mapped-image.ts';
import { readBytes, viewOf } from '../shared/table-io.ts';
import { createTwoLevel } from '../shared/two-level.ts';
import { createWriteBack } from '../shared/write-back.ts';
import { HEADER_BYTES, l1Entries, parseHeader, type QcowHeader } from './header.ts';
import { decodeEntry, type QcowNode, type QcowState } from './map.ts';

interface QcowOptions {
  readonly encrypt?: { readonly format?: string; readonly 'key-secret'?: string };
}

export async function open(node: QcowNode, context: OpenContext): Promise<QcowState> {
  const file = (await context.openChild('file', Role.data | Role.metadata | Role.primary, true))!;
  const state = await node.layer.graphLock.withRead((guard) => load(node, file, guard, context));
  await context.openBacking(state.backing);
  return state;
}

async function load(
  node: QcowNode,
  file: BlockChild,
  guard: GraphReadGuard,
  context: OpenContext,
): Promise<QcowState> {
  const fileBytes = file.node.totalBytes;
  const header = parseHeader(await readBytes(file, guard, 0, HEADER_BYTES), fileBytes);
  const cipher = openCipher(node, header, context);
  const space = createSpace(file, fileBytes);
  const l1 = viewOf(await readBytes(file, guard, header.l1Offset, l1Entries(header) * 8));
  const table = createTwoLevel(file, l1, {
    blockBytes: 2 ** header.clusterBits,
    l2Entries: 2 ** header.l2Bits,
    l1Offset: header.l1Offset,
    littleEndian: false,
    decode: (view, at) => decodeEntry(view, at, space.end),
    checkTable(offset) {
      if (offset >= HEADER_BYTES && offset < space.end) return;
      throw new BlockError(`L2 table offset 0x${BigInt(offset).toString(16)} is not inside the file`, {
        errno: E.EIO,
      });
    },
  });
  return {
    file,
    header,
    backing: await readBackingName(file, guard, header),
    table,
    space,
    cipher,
    isEncrypted: header.crypt !== 0,
    packedBytes: 0,
    unpacked: null,
    found: createFound(),
    allocations: [],
    writeBack: createWriteBack(),
  };
}

async function readBackingName(
  file: BlockChild,
  guard: GraphReadGuard,
  header: QcowHeader,
): Promise<BackingName | null> {
  if (header.backingNameOffset === 0 || header.backingNameBytes === 0) return null;
  const name = await readBytes(file, guard, header.backingNameOffset, header.backingNameBytes);
  return { filename: name.toString('utf8'), format: null };
}

/** The cipher of an encrypted image. Such images protect nothing: they are opened to get the data out. */
function openCipher(node: QcowNode, header: QcowHeader, context: OpenContext): BlockCipher | null {
  const { encrypt } = context.options as QcowOptions;
  if (header.crypt === 0) {
    if (encrypt === undefined) return null;
    throw new BlockError(`No encryption in image header, but options specified format '${encrypt.format}'`, {
      errno: E.EINVAL,
    });
  }
  const secretId = encrypt?.['key-secret'];
  if (context.purpose !== 'info' && secretId === undefined)
    throw new BlockError("Parameter 'encrypt.key-secret' is required for cipher", { errno: E.EINVAL });
  if (context.purpose !== 'io' || secretId === undefined) return null;
  const passphrase = passphraseFromSecret(secretId, node.layer.secret(secretId));
  if (!node.readOnly) {
    throw new BlockError(
      'AES-encrypted qcow images can only be opened read-only; use LUKS in qcow2 instead',
      {
        errno: E.ENOTSUP,
      },
    );
  }
  process.stderr.write(`qcow: '${node.name}' uses insecure AES encryption; convert it to LUKS\n`);
  return openAes(passphrase);
}
