/**
 * The tree of objects: what object-add made under /objects, what other floors publish (/chardevs), and how paths
 * find them.
 *
 * Objects made with object-add have an id, a typed value for their users (a secret's bytes, TLS credentials) and a
 * count of users that forbid deletion. As in the original, whoever holds on to the value of an object (a running NBD
 * server its credentials) need not forbid it: the object goes, the value stays with the holder.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { assert, BlockError } from '../errors/error.ts';
import { type Authorizer, createAuthzList, createAuthzSimple } from './authz.ts';
import { createIothread, createMainLoop, type Iothread } from './iothread.ts';
import type { QomObject } from './qom.ts';
import { createThrottleGroup, type ThrottleGroup } from './throttle-group.ts';
import type { TlsCredentials } from './tls-creds.ts';

/** What an object is to its users. */
export type ObjectValue =
  | { readonly kind: 'secret'; readonly data: Buffer }
  | { readonly kind: 'tls-creds'; readonly credentials: TlsCredentials }
  | { readonly kind: 'authz'; readonly authorizer: Authorizer }
  | { readonly kind: 'throttle-group'; readonly group: ThrottleGroup }
  | { readonly kind: 'iothread'; readonly iothread: Iothread }
  | { readonly kind: 'main-loop' }
  | { readonly kind: 'thread-context' }
  | { readonly kind: 'monitor'; readonly close: () => void }
  | { readonly kind: 'pr-manager'; readonly close: () => void }
  | { readonly kind: 'cipher-suites' };

interface UserObject {
  readonly options: ObjectOptions;
  readonly value: ObjectValue;
  readonly qom: QomObject;
  users: number;
}

/** A place in the tree: a container (with children) or an object. */
export type QomNode =
  | { readonly kind: 'container'; readonly path: string; readonly children: ReadonlyMap<string, QomNode> }
  | { readonly kind: 'object'; readonly path: string; readonly object: QomObject };

interface Container {
  readonly kind: 'container';
  readonly path: string;
  readonly children: Map<string, QomNode>;
}

const IDENTIFIER = /^[A-Za-z][A-Za-z0-9._-]*$/;

/** Whether the text is a well-formed identifier. */
export function isIdentifier(text: string): boolean {
  return IDENTIFIER.test(text);
}

/** The error for an id that is not an identifier. */
export function identifierError(): BlockError {
  return new BlockError("Parameter 'id' expects an identifier", {
    hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
  });
}

export type MonitorOptions = Extract<ObjectOptions, { 'qom-type': 'monitor-qmp' }>;

/** What objects are made with that is not on this floor. */
export interface ObjectMakers {
  /** Opens a monitor. `gone`: its peer has left, and the object is to go with it. The result closes it. */
  readonly monitor: (options: MonitorOptions, gone: () => void) => () => void;
  /** Told whether a persistent reservation manager can reach its helper, each time that this becomes known. */
  readonly prManagerStatus: (id: string, connected: boolean) => void;
}

const NO_MAKERS: ObjectMakers = {
  monitor: () => {
    throw new BlockError('invalid object type: monitor-qmp');
  },
  prManagerStatus: () => undefined,
};

export class ObjectTree {
  readonly #makers: ObjectMakers;
  readonly #root: Container = { kind: 'container', path: '/', children: new Map() };
  readonly #objects = new Map<string, UserObject>();

  constructor(makers: ObjectMakers = NO_MAKERS) {
    this.#makers = makers;
  }

  // ---- objects of users --------------------------------------------------------------------------------------

  /** object-add. Throws when the options are invalid or the id is taken. */
  async add(options: ObjectOptions): Promise<void> {
    const { id } = options;
    if (!isIdentifier(id)) throw identifierError();
    const made = await this.#create(options);
    // Creation may have waited: look for the id only now.
    this.publish('objects', id, made.qom);
    // The process uses its loop as long as it runs.
    this.#objects.set(id, { ...made, options, users: made.value.kind === 'main-loop' ? 1 : 0 });
  }

  /** object-del. */
  delete(id: string): void {
    const object = this.#objects.get(id);
    if (object === undefined) throw new BlockError(`object '${id}' not found`);
    if (object.users > 0) throw new BlockError(`object '${id}' is in use, can not be deleted`);
    this.#objects.delete(id);
    this.withdraw('objects', id);
    if (object.value.kind === 'monitor' || object.value.kind === 'pr-manager') object.value.close();
  }

  /** The options that object-add would take to make the objects there are, as they are now, in the order of their making. */
  savedOptions(): ObjectOptions[] {
    // Monitors are of this run, as their devices are.
    const kept = [...this.#objects.values()].filter(({ value }) => value.kind !== 'monitor');
    return kept.map(({ options, value }) =>
      options['qom-type'] === 'throttle-group' && value.kind === 'throttle-group'
        ? { 'qom-type': 'throttle-group', id: options.id, limits: { ...value.group.limits } }
        : options,
    );
  }

  /**
   * Throws when there is no persistent reservation manager of that name. As in the original, a node that was opened with one
   * does not keep it from being deleted.
   */
  checkPrManager(id: string): void {
    const value = this.find(id);
    if (value === null) throw new BlockError(`No persistent reservation manager with id '${id}'`);
    if (value.kind !== 'pr-manager')
      throw new BlockError(`Object with id '${id}' is not a persistent reservation manager`);
  }

  /** The value of an object; null when there is no such object. */
  find(id: string): ObjectValue | null {
    return this.#objects.get(id)?.value ?? null;
  }

  /** Keeps the object from being deleted until the returned function is called. */
  use(id: string): () => void {
    const object = this.#objects.get(id);
    assert(object !== undefined, `use of object '${id}', which does not exist`);
    object.users++;
    let used = true;
    return () => {
      if (used) object.users--;
      used = false;
    };
  }

  /** The bytes of a secret. */
  secret(id: string): Buffer {
    const value = this.find(id);
    if (value === null) throw new BlockError(`No secret with id '${id}'`);
    if (value.kind !== 'secret') throw new BlockError(`Object with id '${id}' is not a secret`);
    return value.data;
  }

  /** A secret that must be text. */
  secretText(id: string): string {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.secret(id));
    } catch (error) {
      if (error instanceof BlockError) throw error;
      throw new BlockError(`Data from secret ${id} is not valid UTF-8`);
    }
  }

  /** TLS credentials for one side of a session. */
  tlsCreds(id: string, endpoint: TlsCredentials['endpoint'] = 'server'): TlsCredentials {
    const value = this.find(id);
    if (value === null) throw new BlockError(`No TLS credentials with id '${id}'`);
    if (value.kind !== 'tls-creds') throw new BlockError(`Object with id '${id}' is not TLS credentials`);
    if (value.credentials.endpoint !== endpoint) {
      throw new BlockError(`Expected TLS credentials for a ${endpoint} endpoint`);
    }
    return value.credentials;
  }

  /** The authorisation object, or null: services look it up for each peer, and deny when it is missing. */
  authz(id: string): Authorizer | null {
    const value = this.find(id);
    return value?.kind === 'authz' ? value.authorizer : null;
  }

  /** The throttle group, which cannot be deleted until `release`; null when there is none of that name. */
  useThrottleGroup(id: string): { readonly group: ThrottleGroup; readonly release: () => void } | null {
    const value = this.find(id);
    return value?.kind === 'throttle-group' ? { group: value.group, release: this.use(id) } : null;
  }

  /** An iothread for an export or a device. */
  iothread(id: string): Iothread {
    const value = this.find(id);
    if (value?.kind !== 'iothread') throw new BlockError(`iothread "${id}" not found`);
    return value.iothread;
  }

  async #create(options: ObjectOptions): Promise<{ value: ObjectValue; qom: QomObject }> {
    switch (options['qom-type']) {
      case 'authz-list': {
        const { authorizer, qom } = createAuthzList(options);
        return { value: { kind: 'authz', authorizer }, qom };
      }
      case 'authz-list-file':
      case 'authz-listfile': {
        this.#refuseDuplicate(options.id);
        const { createAuthzListFile } = await import('./authz-file.ts');
        const { authorizer, qom } = createAuthzListFile(options);
        return { value: { kind: 'authz', authorizer }, qom };
      }
      case 'authz-simple': {
        const { authorizer, qom } = createAuthzSimple(options);
        return { value: { kind: 'authz', authorizer }, qom };
      }
      case 'iothread': {
        const { iothread, qom } = createIothread(options);
        return { value: { kind: 'iothread', iothread }, qom };
      }
      case 'main-loop': {
        const qom = createMainLoop(options);
        if ([...this.#objects.values()].some(({ value }) => value.kind === 'main-loop'))
          throw new BlockError('There is a main-loop object already');
        return { value: { kind: 'main-loop' }, qom };
      }
      case 'monitor-qmp': {
        this.#refuseDuplicate(options.id);
        const close = this.#makers.monitor(
          options,
          () => this.#objects.has(options.id) && this.delete(options.id),
        );
        return { value: { kind: 'monitor', close }, qom: monitorObject(options) };
      }
      case 'pr-manager-helper': {
        this.#refuseDuplicate(options.id);
        const { createPrManager } = await import('./pr-manager-helper.ts');
        const { close, qom } = await createPrManager(options, (connected) =>
          this.#makers.prManagerStatus(options.id, connected),
        );
        return { value: { kind: 'pr-manager', close }, qom };
      }
      case 'thread-context': {
        const { createThreadContext } = await import('./thread-context.ts');
        return { value: { kind: 'thread-context' }, qom: createThreadContext(options) };
      }
      case 'throttle-group': {
        const { group, qom } = createThrottleGroup(options);
        return { value: { kind: 'throttle-group', group }, qom };
      }
      // The rest needs node:crypto, which most runs can do without: loaded when first wanted.
      case 'secret': {
        this.#refuseDuplicate(options.id);
        const { createSecret } = await import('./secret.ts');
        const { data, qom } = await createSecret(options, (id) => this.secret(id));
        return { value: { kind: 'secret', data }, qom };
      }
      case 'secret_keyring': {
        this.#refuseDuplicate(options.id);
        const { createSecretKeyring } = await import('./secret.ts');
        const { data, qom } = createSecretKeyring(options, (id) => this.secret(id));
        return { value: { kind: 'secret', data }, qom };
      }
      case 'tls-cipher-suites': {
        const { createTlsCipherSuites } = await import('./tls-creds-anon.ts');
        return { value: { kind: 'cipher-suites' }, qom: createTlsCipherSuites(options) };
      }
      case 'tls-creds-anon': {
        this.#refuseDuplicate(options.id);
        const { createTlsAnon } = await import('./tls-creds-anon.ts');
        const { credentials, qom } = createTlsAnon(options);
        return { value: { kind: 'tls-creds', credentials }, qom };
      }
      case 'tls-creds-psk': {
        this.#refuseDuplicate(options.id);
        const { createTlsPsk } = await import('./tls-creds-psk.ts');
        const { credentials, qom } = createTlsPsk(options);
        return { value: { kind: 'tls-creds', credentials }, qom };
      }
      case 'tls-creds-x509': {
        this.#refuseDuplicate(options.id);
        const { createTlsX509 } = await import('./tls-creds-x509.ts');
        const { credentials, qom } = createTlsX509(options, (id) => this.secretText(id));
        return { value: { kind: 'tls-creds', credentials }, qom };
      }
    }
  }

  /** A taken id is reported before what is wrong with the content of files. */
  #refuseDuplicate(id: string): void {
    if (this.#objects.has(id)) throw duplicateError(id);
  }

  // ---- the tree ----------------------------------------------------------------------------------------------

  /** Shows an object as a child of a top-level container, which is made when it is missing. */
  publish(container: string, id: string, object: QomObject): void {
    const path = `/${container}`;
    const existing = this.#root.children.get(container);
    assert(existing === undefined || existing.kind === 'container', 'only containers at the top');
    const target: Container =
      existing === undefined ? { kind: 'container', path, children: new Map() } : (existing as Container);
    if (target.children.has(id)) throw duplicateError(id);
    if (existing === undefined) this.#root.children.set(container, target);
    target.children.set(id, { kind: 'object', path: `${path}/${id}`, object });
  }

  /** Shows another object in the place of one that was published. */
  replace(container: string, id: string, object: QomObject): void {
    const parent = this.#root.children.get(container) as Container;
    assert(parent.children.has(id), `replace of ${container}/${id}, which does not exist`);
    parent.children.set(id, { kind: 'object', path: `${parent.path}/${id}`, object });
  }

  /** Takes an object out of the tree again. */
  withdraw(container: string, id: string): void {
    const parent = this.#root.children.get(container);
    assert(parent?.kind === 'container', `no container ${container}`);
    (parent as Container).children.delete(id);
  }

  /**
   * What a path leads to: from the root when it starts with a slash, otherwise from any one place. Null when there is
   * nothing, 'ambiguous' when a relative path fits several places.
   */
  resolve(path: string): QomNode | 'ambiguous' | null {
    const parts = path.split('/').filter((part) => part !== '');
    if (path.startsWith('/')) return descend(this.#root, parts);
    const found = new Set(everyNode(this.#root).map((node) => descend(node, parts)));
    found.delete(null);
    const [first = null] = found;
    return found.size > 1 ? 'ambiguous' : first;
  }
}

function monitorObject(options: MonitorOptions): QomObject {
  const { chardev, pretty = false, 'close-action': closeAction = 'none' } = options;
  const accessors = {
    chardev: { get: () => chardev },
    pretty: { get: () => pretty },
    'close-action': { get: () => closeAction },
  };
  return { typeName: 'monitor-qmp', accessors };
}

function duplicateError(id: string): BlockError {
  return new BlockError(`attempt to add duplicate property '${id}' to object (type 'container')`);
}

function descend(start: QomNode, parts: readonly string[]): QomNode | null {
  let node: QomNode | null = start;
  for (const part of parts) node = node?.kind === 'container' ? (node.children.get(part) ?? null) : null;
  return node;
}

function everyNode(node: QomNode): QomNode[] {
  return node.kind === 'object' ? [node] : [node, ...[...node.children.values()].flatMap(everyNode)];
}
