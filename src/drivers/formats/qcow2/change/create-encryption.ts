/**
 * Making an image encrypted: the last step of its creation, before any guest data is there.
 *
 * LUKS: the volume's header with its key slots lies in clusters of the image, which a header extension names. Legacy
 * AES needs nothing but its number in the header. Opening encrypted images is encryption.ts.
 */

import type { QCryptoBlockCreateOptions } from '../../../../../schema/generated/types.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { BlockError } from '../../../../errors/error.ts';
import { createLuks } from '../../../crypto/luks.ts';
import { passphraseFromSecret } from '../../../crypto/passphrase.ts';
import { Crypt } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { allocateContiguous } from '../metadata/contiguous.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { barrier, writeHeader, writeMetadata } from '../metadata/metadata-io.ts';
import { flushMetadataLocked } from '../metadata/writeback.ts';

/** Encrypts an image that holds no data yet. Takes seconds with LUKS: the key derivations are slow on purpose. */
export async function setUpEncryption(node: Qcow2Node, options: QCryptoBlockCreateOptions): Promise<void> {
  const { 'key-secret': secretId } = options;
  if (secretId === undefined) throw new BlockError("Parameter 'encrypt.key-secret' is required for cipher");
  const passphrase = passphraseFromSecret(secretId, node.layer.secret(secretId));
  const { graphLock } = node.layer;
  if (options.format === 'qcow') {
    await graphLock.withRead((guard) => setMethod(node, guard, Crypt.aes));
    return;
  }
  const volume = await createLuks(options, passphrase);
  volume.cipher.close();
  await graphLock.withRead((guard) => storeLuks(node, guard, volume.header, volume.payloadOffset));
}

async function setMethod(node: Qcow2Node, guard: GraphReadGuard, method: number): Promise<void> {
  node.state.header.cryptMethod = method;
  await writeHeader(node, guard);
  await barrier(node, guard);
}

/** Writes the LUKS header (`bytes` with all key slots) to new clusters; what it does not fill is zero. */
async function storeLuks(
  node: Qcow2Node,
  guard: GraphReadGuard,
  header: Buffer,
  bytes: number,
): Promise<void> {
  const s = node.state;
  const clusters = Math.ceil(bytes / s.clusterBytes);
  const content = Buffer.alloc(clusters * s.clusterBytes);
  header.copy(content);
  await exclusive(node, guard, async () => {
    const run = await allocateContiguous(node, guard, clusters);
    await writeMetadata(node, guard, run.offset, content, null);
    await flushMetadataLocked(node, guard);
    s.header.encryption = { offset: run.offset, bytes };
    await setMethod(node, guard, Crypt.luks);
    rebuildMetadata(s);
  });
}
