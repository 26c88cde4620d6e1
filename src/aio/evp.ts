/**
 * Ciphers of the OpenSSL inside node, called directly: one context per direction, given a new initialisation vector
 * for every unit of data.
 *
 * node:crypto makes a new object for every vector, which costs some 5 us per 512-byte sector; this costs 0.4 us. Not
 * every node exports OpenSSL's symbols, so callers have a way without. Here: the calls. Not here: what the vectors
 * are (src/drivers/crypto).
 */

import koffi from 'koffi';
import { E } from '../errors/errno.ts';
import { assert, ioError } from '../errors/error.ts';
import { addressOf } from './ffi.ts';

/** Bytes of an initialisation vector in the arrays given to `run`. */
export const IV_BYTES = 16;

/** A cipher with its key, for one direction, without padding. */
export interface CipherContext {
  /**
   * Transforms `count` units of `unitBytes` bytes from `buf[start]` on in place; unit i starts over with the vector
   * at `ivs[16 * i]`. Throws when the library reports an error (which full blocks never cause).
   */
  run(buf: Buffer, start: number, unitBytes: number, ivs: Buffer, count: number): void;
  /** Frees the context and wipes the key. The cipher must not be used afterwards. */
  free(): void;
}

type Library = ReturnType<typeof koffi.load>;

function bind(self: Library) {
  return {
    fetch: self.func('EVP_get_cipherbyname', 'uintptr_t', ['str']),
    create: self.func('EVP_CIPHER_CTX_new', 'uintptr_t', []),
    free: self.func('EVP_CIPHER_CTX_free', 'void', ['uintptr_t']),
    init: self.func('EVP_CipherInit_ex', 'int', [
      ...['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'int'],
    ]),
    setPadding: self.func('EVP_CIPHER_CTX_set_padding', 'int', ['uintptr_t', 'int']),
    update: self.func('EVP_CipherUpdate', 'int', ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'int']),
  };
}

/** Whether the legacy provider is there; undefined: not asked for yet. */
let legacy: boolean | undefined;

let bound: ReturnType<typeof bind> | null | undefined;

function bindings(): ReturnType<typeof bind> | null {
  if (bound === undefined) {
    try {
      bound = bind(koffi.load(null));
    } catch {
      bound = null; // This node keeps its OpenSSL to itself.
    }
  }
  return bound;
}

/**
 * Makes the algorithms of OpenSSL's legacy provider (CAST5, Whirlpool) known to this module and to node:crypto. False:
 * they are not to be had here.
 */
export function loadLegacyProvider(): boolean {
  if (legacy === undefined) {
    try {
      const load = koffi.load(null).func('OSSL_PROVIDER_load', 'uintptr_t', ['uintptr_t', 'str']);
      // Loading one provider by name takes the place of the default one unless that is loaded by name as well.
      legacy = load(0, 'default') !== 0 && load(0, 'legacy') !== 0;
    } catch {
      legacy = false;
    }
  }
  return legacy;
}

/** EVP_CipherInit_ex: keep the direction the context has. */
const SAME_DIRECTION = -1;

/**
 * A cipher by OpenSSL's name (`aes-256-xts`). Null when this node exports no OpenSSL, or its OpenSSL does not have
 * the cipher or refuses the key. The key's length must be the cipher's.
 */
export function openEvpCipher(name: string, key: Buffer, encrypt: boolean): CipherContext | null {
  const evp = bindings();
  if (evp === null) return null;
  const cipher: number = evp.fetch(name);
  if (cipher === 0) return null;
  const context: number = evp.create();
  if (context === 0) return null;
  const noIv = Buffer.alloc(IV_BYTES);
  const ready = evp.init(context, cipher, 0, addressOf(key), addressOf(noIv), encrypt ? 1 : 0);
  if (ready !== 1 || evp.setPadding(context, 0) !== 1) {
    evp.free(context);
    return null;
  }
  const written = Buffer.allocUnsafeSlow(64);
  const writtenAddr = addressOf(written);
  let open = true;
  return {
    run: (buf, start, unitBytes, ivs, count) => {
      assert(open && start >= 0 && unitBytes > 0, 'cipher in use');
      assert(start + unitBytes * count <= buf.length, 'data inside the buffer');
      assert(IV_BYTES * count <= ivs.length, 'a vector for every unit');
      const ivAddr = addressOf(ivs);
      let at = addressOf(buf) + start;
      for (let i = 0; i < count; i++, at += unitBytes) {
        const done =
          evp.init(context, 0, 0, 0, ivAddr + IV_BYTES * i, SAME_DIRECTION) === 1 &&
          evp.update(context, at, writtenAddr, at, unitBytes) === 1;
        if (!done || written.readInt32LE(0) !== unitBytes) throw ioError(E.EIO);
      }
    },
    free: () => {
      if (open) evp.free(context);
      open = false;
    },
  };
}
