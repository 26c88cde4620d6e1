/** Entry of the threads that encrypt (src/aio/workers): the same ciphers, in another thread. Not imported by anything. */

import { serveThread } from '../../aio/workers/thread.ts';
import { type CipherSpec, openBlockCipher } from './block-cipher.ts';

/** What a cipher is made of there. */
export interface CipherDescription {
  readonly spec: CipherSpec;
  readonly key: Uint8Array;
}

/** What is to be done with a buffer. */
export interface CipherJob {
  readonly encrypt: boolean;
  readonly offset: number;
}

serveThread((description) => {
  const { spec, key } = description as CipherDescription;
  const cipher = openBlockCipher(spec, Buffer.from(key));
  key.fill(0);
  return {
    use: (buf, job) => {
      const { encrypt, offset } = job as CipherJob;
      if (encrypt) cipher.encrypt(buf, offset);
      else cipher.decrypt(buf, offset);
    },
    close: () => cipher.close(),
  };
});
