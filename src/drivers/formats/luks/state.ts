/** The state of an open luks node. */

import type { QCryptoBlockInfoLUKS } from '../../../../schema/generated/types.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import type { BlockCipher } from '../../crypto/block-cipher.ts';

export interface LuksState {
  /** Where the encrypted content is. */
  readonly file: BlockChild;
  /** Where the header is: `file`, or the detached header's node. */
  readonly header: BlockChild;
  /** Null: opened for information, without a key. */
  readonly cipher: BlockCipher | null;
  /** Bytes that are encrypted as one: requests are whole multiples. */
  readonly sectorBytes: number;
  readonly payloadOffset: number;
  /** Length of the content in bytes where the header says it (LUKS2); null: up to the end of the file. */
  readonly payloadBytes: number | null;
  /** Replaced when key slots change. */
  info: QCryptoBlockInfoLUKS;
  /** Key slots are being changed: nobody else may look at the header meanwhile. */
  changingKeys: boolean;
}

export type LuksNode = BlockNode<LuksState>;
