/**
 * The types of objects this daemon has: names, ancestry and properties as the original lists them.
 *
 * Here: one constant table. The order of the properties is the one in which the original answers
 * qom-list-properties (recorded from version 7.2). How an object's properties are read and written is in the file
 * of its type.
 */

import type { QomType } from './qom.ts';

const EVENT_LOOP = [
  ['thread-pool-min', 'int'],
  ['aio-max-batch', 'int'],
  ['thread-pool-max', 'int'],
] as const;

const TLS_CREDS = [
  ['endpoint', 'QCryptoTLSCredsEndpoint'],
  ['dir', 'string'],
  ['verify-peer', 'bool'],
  ['priority', 'string'],
] as const;

function concrete(parent: string, properties: QomType['properties'] = []): QomType {
  return { parent, abstract: false, properties };
}

function creatable(parent: string, properties: QomType['properties']): QomType {
  return { parent, abstract: false, userCreatable: true, properties };
}

function abstract(parent: string | null, properties: QomType['properties'] = []): QomType {
  return { parent, abstract: true, properties };
}

/** Every type by name. */
export const QOM_TYPES: Readonly<Record<string, QomType>> = {
  interface: { parent: null, abstract: true, isInterface: true, properties: [] },
  'user-creatable': { parent: 'interface', abstract: true, isInterface: true, properties: [] },
  'fw_cfg-data-generator': { parent: 'interface', abstract: true, isInterface: true, properties: [] },
  object: abstract(null, [['type', 'string']]),
  container: concrete('object'),
  authz: abstract('object'),
  'authz-list': creatable('authz', [
    ['policy', 'QAuthZListPolicy'],
    ['rules', 'QAuthZListRule'],
  ]),
  'authz-list-file': creatable('authz', [
    ['filename', 'string'],
    ['refresh', 'bool'],
  ]),
  'authz-simple': creatable('authz', [['identity', 'string']]),
  'event-loop-base': abstract('object', EVENT_LOOP),
  iothread: creatable('event-loop-base', [
    ['poll-max-ns', 'int'],
    ['poll-grow', 'int'],
    ['poll-shrink', 'int'],
    ['poll-weight', 'int'],
  ]),
  'main-loop': creatable('event-loop-base', []),
  monitor: abstract('object', [['chardev', 'string']]),
  'monitor-qmp': creatable('monitor', [
    ['pretty', 'bool'],
    ['close-action', 'MonitorQmpCloseAction'],
  ]),
  'pr-manager': abstract('object'),
  'pr-manager-helper': creatable('pr-manager', [['path', 'string']]),
  secret_common: abstract('object', [
    ['iv', 'string'],
    ['keyid', 'string'],
    ['loaded', 'bool'],
    ['format', 'QCryptoSecretFormat'],
  ]),
  secret: creatable('secret_common', [
    ['file', 'string'],
    ['data', 'string'],
  ]),
  secret_keyring: creatable('secret_common', [['serial', 'int32_t']]),
  'thread-context': creatable('object', [
    ['thread-id', 'int'],
    ['node-affinity', 'int'],
    ['cpu-affinity', 'int'],
  ]),
  'throttle-group': creatable('object', [
    ['x-bps-write-max-length', 'int'],
    ['x-iops-total-max-length', 'int'],
    ['x-iops-size', 'int'],
    ['limits', 'ThrottleLimits'],
    ['x-bps-total', 'int'],
    ['x-iops-read-max-length', 'int'],
    ['x-bps-write', 'int'],
    ['x-iops-write-max-length', 'int'],
    ['x-bps-read-max', 'int'],
    ['x-iops-read-max', 'int'],
    ['x-bps-total-max', 'int'],
    ['x-bps-read-max-length', 'int'],
    ['x-iops-read', 'int'],
    ['x-bps-read', 'int'],
    ['x-bps-write-max', 'int'],
    ['x-iops-total-max', 'int'],
    ['x-iops-total', 'int'],
    ['x-iops-write', 'int'],
    ['x-bps-total-max-length', 'int'],
    ['x-iops-write-max', 'int'],
  ]),
  'tls-creds': abstract('object', TLS_CREDS),
  'tls-cipher-suites': { ...creatable('tls-creds', []), interfaces: ['fw_cfg-data-generator'] },
  'tls-creds-anon': creatable('tls-creds', [['loaded', 'bool']]),
  'tls-creds-psk': creatable('tls-creds', [
    ['username', 'string'],
    ['loaded', 'bool'],
  ]),
  'tls-creds-x509': creatable('tls-creds', [
    ['sanity-check', 'bool'],
    ['passwordid', 'string'],
    ['loaded', 'bool'],
  ]),
  chardev: abstract('object'),
  'chardev-fd': abstract('chardev'),
  'chardev-file': concrete('chardev-fd'),
  'chardev-mux': concrete('chardev'),
  'chardev-null': concrete('chardev'),
  'chardev-pipe': concrete('chardev-fd'),
  'chardev-hub': concrete('chardev'),
  'chardev-parallel': concrete('chardev'),
  'chardev-pty': concrete('chardev'),
  'chardev-serial': concrete('chardev-fd'),
  'chardev-ringbuf': concrete('chardev'),
  'chardev-memory': concrete('chardev-ringbuf'),
  'chardev-socket': concrete('chardev', [
    ['connected', 'bool'],
    ['addr', 'SocketAddress'],
  ]),
  'chardev-stdio': concrete('chardev-fd'),
  'chardev-udp': concrete('chardev'),
  // What the original's own channels are; no object of these types is ever seen.
  'qio-channel': abstract('object'),
  'qio-channel-buffer': concrete('qio-channel'),
  'qio-channel-command': concrete('qio-channel'),
  'qio-channel-file': concrete('qio-channel'),
  'qio-channel-null': concrete('qio-channel'),
  'qio-channel-socket': concrete('qio-channel'),
  'qio-channel-tls': concrete('qio-channel'),
  'qio-channel-websock': concrete('qio-channel'),
  'qio-dns-resolver': concrete('object'),
  'qio-net-listener': concrete('object'),
};

/** The type by name; null when there is none. */
export function findQomType(name: string): QomType | null {
  return Object.hasOwn(QOM_TYPES, name) ? (QOM_TYPES[name] ?? null) : null;
}

/** All properties of a type, inherited ones first. */
export function qomProperties(name: string): readonly (readonly [name: string, type: string])[] {
  const type = findQomType(name);
  if (type === null) return [];
  return type.parent === null ? type.properties : [...qomProperties(type.parent), ...type.properties];
}

/** Whether `name` is the type `ancestor`, is derived from it, or implements it. */
export function isQomSubtype(name: string, ancestor: string): boolean {
  const type = findQomType(name);
  if (type === null) return false;
  if (name === ancestor) return true;
  const interfaces = [...(type.userCreatable === true ? ['user-creatable'] : []), ...(type.interfaces ?? [])];
  if (interfaces.includes(ancestor)) return true;
  // With more than one it would not be clear which is meant: the original says no then.
  if (ancestor === 'interface' && interfaces.length === 1) return true;
  return type.parent !== null && isQomSubtype(type.parent, ancestor);
}
