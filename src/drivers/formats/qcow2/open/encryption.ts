/**
 * Encryption inside qcow2: which cipher an open image uses. The ciphers themselves are src/drivers/crypto.
 *
 * LUKS: its header lies in clusters of the image that the header extension names; initialization vectors come from
 * host offsets. Legacy AES has no header, its vectors come from guest offsets, and it is insecure: such images are
 * opened read-only, to get the data out.
 */

import type { OpenContext } from '../../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { cipherWithoutKey } from '../../../crypto/block-cipher.ts';
import { openAes } from '../../../crypto/legacy-aes.ts';
import { openLuks, readLuksInfo } from '../../../crypto/luks.ts';
import { passphraseFromSecret } from '../../../crypto/passphrase.ts';
import type { Header } from '../layout/header.ts';
import { Crypt } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { readMetadata } from '../metadata/metadata-io.ts';
import type { Qcow2Options } from './options.ts';

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** Throws when the image says that it is encrypted by LUKS, but not where the LUKS header is. */
export function checkCryptoHeader({ cryptMethod, encryption }: Header): void {
  if (cryptMethod === Crypt.luks && encryption === null)
    throw invalid(`Missing CRYPTO header for crypt method ${cryptMethod}`);
}

/** Sets the node's cipher as its header and the `encrypt` option say. */
export async function openCipher(
  node: Qcow2Node,
  guard: GraphReadGuard,
  option: Qcow2Options['encrypt'],
  context: OpenContext,
): Promise<void> {
  const { header, extras } = node.state;
  if (header.cryptMethod === Crypt.none) return;
  const format = header.cryptMethod === Crypt.luks ? 'luks' : 'aes';
  const read = (offset: number, bytes: number): Promise<Buffer> => {
    const { offset: start, bytes: length } = header.encryption!;
    if (offset + bytes > length) throw invalid('Request for data outside of extension header');
    return readMetadata(node, guard, start + offset, bytes);
  };
  const secretId = option?.['key-secret'];
  if (context.purpose !== 'info' && secretId === undefined)
    throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  const secret = secretId === undefined ? null : node.layer.secret(secretId);
  if (format === 'luks') extras.luks = await readLuksInfo(read);
  if (context.purpose !== 'io' || secretId === undefined || secret === null) {
    extras.cipher = cipherWithoutKey();
    return;
  }
  const passphrase = passphraseFromSecret(secretId, secret);
  if (format === 'luks') {
    const volume = await openLuks(read, passphrase);
    extras.cipher = volume.cipher;
    return;
  }
  if (!node.readOnly) {
    throw new BlockError('AES-encrypted qcow2 images can only be opened read-only; use LUKS instead', {
      errno: E.ENOTSUP,
    });
  }
  process.stderr.write(`qcow2: '${node.name}' uses insecure AES encryption; convert it to LUKS\n`);
  extras.cipher = openAes(passphrase);
  extras.cipherUsesHostOffset = false;
}
