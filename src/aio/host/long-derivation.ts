/**
 * Key derivation that takes long, in a process of its own: it can be ended at any time, which a thread inside of
 * OpenSSL cannot, and the end of this process does not wait for it.
 *
 * The passphrase goes through a pipe, never on a command line. The child ends by itself when this process is gone.
 * Short derivations are the thread pool's (src/drivers/crypto).
 */

import { spawn } from 'node:child_process';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';

/** What the child runs: parameters in JSON on standard input, the key in hexadecimal on standard output. */
const PROGRAM = `
const { pbkdf2 } = require('node:crypto');
let text = '';
process.stdin.on('data', (data) => {
  text += data;
  if (!text.endsWith('\\n')) return;
  const { passphrase, salt, iterations, bytes, hash } = JSON.parse(text);
  pbkdf2(Buffer.from(passphrase, 'hex'), Buffer.from(salt, 'hex'), iterations, bytes, hash, (error, key) => {
    if (!error) process.stdout.write(key.toString('hex'));
    process.stdin.pause();
    process.exitCode = error ? 1 : 0;
  });
});
process.stdin.on('end', () => process.kill(process.pid, 'SIGKILL'));
`;

export interface DerivationRequest {
  readonly hash: string;
  readonly passphrase: Buffer;
  readonly salt: Buffer;
  readonly iterations: number;
  readonly bytes: number;
}

/** Ends of the derivations under way. */
const running = new Set<() => void>();
/** Told when one begins: see onLongDerivation. */
const listeners = new Set<() => void>();
let refused = false;

/** PBKDF2 in a process of its own. Throws ECANCELED when cancelDerivations has ended it. */
export function deriveInChild(request: DerivationRequest): Promise<Buffer> {
  if (refused) return Promise.reject(ioError(E.ECANCELED));
  const child = spawn(process.execPath, ['-e', PROGRAM], {
    stdio: ['pipe', 'pipe', 'ignore'],
    env: {},
    cwd: '/',
  });
  let output = '';
  let cancelled = false;
  const cancel = (): void => {
    cancelled = true;
    child.kill('SIGKILL');
  };
  running.add(cancel);
  for (const begun of listeners) begun();
  return new Promise<Buffer>((resolve, reject) => {
    child.once('error', () => reject(new BlockError('Cannot start the derivation of a key')));
    child.stdin.on('error', () => undefined);
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      output += text;
    });
    child.once('close', (status) => {
      if (status === 0) resolve(Buffer.from(output, 'hex'));
      else reject(cancelled ? ioError(E.ECANCELED) : new BlockError('The derivation of a key failed'));
    });
    const { passphrase, salt, ...rest } = request;
    const message = { ...rest, passphrase: passphrase.toString('hex'), salt: salt.toString('hex') };
    child.stdin.write(`${JSON.stringify(message)}\n`);
  }).finally(() => running.delete(cancel));
}

/** Ends all derivations under way, and refuses new ones: the process is about to end. */
export function cancelDerivations(): void {
  refused = true;
  for (const cancel of running) cancel();
}

/** Calls `begun` whenever a derivation begins that takes long: whoever waits in a queue can be let go first. */
export function onLongDerivation(begun: () => void): void {
  listeners.add(begun);
}
