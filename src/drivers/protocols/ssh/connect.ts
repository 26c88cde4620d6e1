/**
 * Connecting to an SSH server: the connection, its key, and who we are. By agent first, then by key files without a
 * passphrase, as ssh(1) does. The protocol is ssh2's, which is loaded when it is first needed.
 */

import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { AnyAuthMethod, Client, ServerHostKeyAlgorithm } from 'ssh2';
import type { InetSocketAddress } from '../../../../schema/generated/types.ts';
import { connectTo } from '../../../aio/sockets.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { networkError, PassingError } from '../../net/failures.ts';
import { checkHostKey, type HostKeyCheck, homeFolder, keysOfHost } from './host-key.ts';

export interface SshTarget {
  readonly server: InetSocketAddress;
  readonly user: string;
  readonly check: HostKeyCheck;
  /** In place of the user's and the system's files. */
  readonly knownHosts: string | undefined;
  /** In place of the user's usual ones, and of the agent's. */
  readonly identityFile: string | undefined;
  /** A server that says nothing for so long is given up. */
  readonly timeoutMs: number;
}

const KEY_FILES: readonly string[] = ['id_ed25519', 'id_ecdsa', 'id_rsa'];
const HOST_KEY_ALGORITHMS: Readonly<Record<string, readonly ServerHostKeyAlgorithm[]>> = {
  'ssh-ed25519': ['ssh-ed25519'],
  'ecdsa-sha2-nistp256': ['ecdsa-sha2-nistp256'],
  'ecdsa-sha2-nistp384': ['ecdsa-sha2-nistp384'],
  'ecdsa-sha2-nistp521': ['ecdsa-sha2-nistp521'],
  'ssh-rsa': ['rsa-sha2-512', 'rsa-sha2-256'],
};
const NOT_LET_IN =
  'failed to authenticate using publickey authentication and the identities held by your ssh-agent';

/** Resolves with a client that is logged in; it emits `close` once, whatever ends it. */
export async function connectSsh(target: SshTarget, signal: AbortSignal): Promise<Client> {
  const { Client } = await import('ssh2');
  const { server } = target;
  const socket = await connectTo({ type: 'inet', ...server }, { signal });
  socket.setNoDelay(true);
  const known = target.check.mode === 'known_hosts' ? knownKeysOf(target) : [];
  const client = new Client();
  let refusal: unknown = null;
  try {
    await new Promise<void>((resolve, reject) => {
      const giveUp = (): void => {
        refusal ??= new BlockError('Operation canceled', { errno: E.ECANCELED });
        client.destroy();
      };
      signal.addEventListener('abort', giveUp);
      const done = (settle: () => void): void => {
        signal.removeEventListener('abort', giveUp);
        settle();
      };
      client
        .on('ready', () => done(resolve))
        .on('error', (error: Error & { readonly level?: string }) => {
          // Without its agent there are key files still.
          if (error.level !== 'agent') done(() => reject(refusal ?? loginError(error, server.host)));
        })
        .on('close', () =>
          done(() =>
            reject(refusal ?? new PassingError('The server has ended the connection', E.ECONNRESET)),
          ),
        )
        .connect({
          sock: socket,
          username: target.user,
          readyTimeout: target.timeoutMs,
          // A little later than the watch over requests (link.ts), which knows more.
          keepaliveInterval: Math.ceil(target.timeoutMs / 2),
          keepaliveCountMax: 3,
          authHandler: methodsOf(target),
          algorithms: { serverHostKey: hostKeyAlgorithms(known.map(({ type }) => type)) },
          hostVerifier(key: Buffer) {
            try {
              checkHostKey(key, target.check, known);
              return true;
            } catch (error) {
              refusal = error;
              return false;
            }
          },
        });
      if (signal.aborted) giveUp();
    });
  } catch (error) {
    client.on('error', () => undefined);
    client.destroy();
    throw error;
  }
  // From here on whoever has the client listens to its end.
  client.removeAllListeners('error').on('error', () => undefined);
  return client;
}

function knownKeysOf({ server, knownHosts }: SshTarget) {
  return keysOfHost(server.host, Number(server.port), knownHosts);
}

/** Types that the host is known by come first: it shows one key only. */
function hostKeyAlgorithms(knownTypes: readonly string[]): ServerHostKeyAlgorithm[] {
  const types = [...knownTypes, ...Object.keys(HOST_KEY_ALGORITHMS)];
  return [...new Set(types.flatMap((type) => HOST_KEY_ALGORITHMS[type] ?? []))];
}

function methodsOf({ user: username, identityFile }: SshTarget): AnyAuthMethod[] {
  const agent = process.env.SSH_AUTH_SOCK;
  const files =
    identityFile === undefined
      ? KEY_FILES.map((name) => path.join(homeFolder(), '.ssh', name))
      : [identityFile];
  const methods: AnyAuthMethod[] = [];
  if (agent !== undefined && agent !== '' && identityFile === undefined)
    methods.push({ type: 'agent', username, agent });
  for (const file of files) {
    try {
      methods.push({ type: 'publickey', username, key: readFileSync(file) });
    } catch (error) {
      if (identityFile !== undefined)
        throw new BlockError(`Unable to read ${file}`, { errno: E.EACCES, cause: error });
    }
  }
  return [{ type: 'none', username }, ...methods];
}

function loginError(error: Error & { readonly level?: string }, host: string): BlockError {
  if (error.level === 'client-authentication') return new BlockError(NOT_LET_IN, { errno: E.EPERM });
  if (error.level === 'client-timeout' || error.level === 'client-socket')
    return new PassingError(`failed to establish SSH session: ${error.message}`, E.ECONNRESET);
  if (error.level === 'protocol' || error.level === 'handshake')
    return new BlockError(`failed to establish SSH session: ${error.message}`, { errno: E.EPROTO });
  return networkError(error, host);
}
