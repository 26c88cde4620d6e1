/**
 * The NBD server as commands know it: whether there is one, its start and its end.
 *
 * Here: the state of nbd-server-start and nbd-server-stop. Not here: exports (nbd-export.ts), the wire (src/nbd).
 */

import type { NbdServerOptions } from '../../../schema/generated/types.ts';
import { BlockError } from '../../errors/error.ts';
import { DEFAULT_HANDSHAKE_MAX_SECONDS, DEFAULT_MAX_CONNECTIONS } from '../../nbd/protocol/limits.ts';
import { NbdServer } from '../../nbd/server/server.ts';
import type { TlsSettings } from '../../nbd/server/tls.ts';
import type { ExportEnvironment } from '../contract.ts';

/** Where an NBD server was asked for: only the command line may name inherited descriptors. */
export type Origin = 'qmp' | 'command-line';

export class NbdService {
  readonly #environment: ExportEnvironment;
  #server: NbdServer | null = null;
  #options: NbdServerOptions | null = null;
  /** A server is being started or stopped. */
  #busy = false;

  constructor(environment: ExportEnvironment) {
    this.#environment = environment;
  }

  /** The server that runs, if any. */
  get server(): NbdServer | null {
    return this.#server;
  }

  /** What it was started with; null when there is none. */
  get options(): NbdServerOptions | null {
    return this.#server === null ? null : this.#options;
  }

  /** nbd-server-start and --nbd-server. `onIdle`: the last client has gone. */
  async start(options: NbdServerOptions, origin: Origin, onIdle?: () => void): Promise<void> {
    if (this.#server !== null || this.#busy) throw new BlockError('NBD server already running');
    const { layer, whenServing, log } = this.#environment;
    const server = new NbdServer(layer.engine, {
      address: options.addr,
      tls: this.#tlsSettings(options),
      maxConnections: options['max-connections'] ?? DEFAULT_MAX_CONNECTIONS,
      handshakeMaxSeconds: options['handshake-max-seconds'] ?? DEFAULT_HANDSHAKE_MAX_SECONDS,
      allowInheritedFd: origin === 'command-line',
      whenServing,
      log,
      ...(onIdle !== undefined && { onIdle }),
    });
    this.#busy = true;
    try {
      await server.start();
      this.#server = server;
      this.#options = options;
    } finally {
      this.#busy = false;
    }
  }

  #tlsSettings(options: NbdServerOptions): TlsSettings | null {
    const id = options['tls-creds'];
    if (id === undefined) return null;
    const { objects } = this.#environment;
    return {
      credentials: objects.tlsCreds(id, 'server'),
      authzId: options['tls-authz'] ?? null,
      findAuthorizer: (authzId) => objects.authz(authzId),
    };
  }

  /** nbd-server-stop; `closeExports` ends the exports of the server, which goes last. */
  async stop(closeExports: () => Promise<void>): Promise<void> {
    const server = this.#server;
    if (server === null) throw new BlockError('NBD server not running');
    this.#server = null;
    this.#busy = true;
    try {
      await closeExports();
      await server.stop();
    } finally {
      this.#busy = false;
    }
  }
}
