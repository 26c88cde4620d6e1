/**
 * qcow2's options of the tools (-o), and the way from their values to the options of creation.
 *
 * Values are strings that the tool has checked by type: sizes are plain numbers of bytes, switches are on or off.
 * What they mean is checked here, in the original's words, before create.ts does the rest.
 */

import type { QCryptoBlockCreateOptions } from '../../../../../schema/generated/types.ts';
import {
  type CreateOption,
  type CreateOptionValues,
  type CreateProgress,
  type ImageCreation,
  sizeOption,
} from '../../../../block/contract/image.ts';
import type { BlockLayer } from '../../../../block/layer.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { LUKS_CREATE_OPTIONS, luksCreateOptions, prefixedOptions } from '../../../crypto/luks-options.ts';
import { choice, createInFiles } from '../../shared/creation.ts';
import { AMEND_OPTIONS } from './amend.ts';
import { createImage, type Qcow2CreateOptions } from './create.ts';

const ENCRYPT_OPTIONS: readonly CreateOption[] = [
  {
    name: 'encryption',
    type: 'bool',
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  { name: 'encrypt.format', type: 'string', help: "Encrypt the image, format choices: 'aes', 'luks'" },
  {
    name: 'encrypt.key-secret',
    type: 'string',
    help: 'ID of secret providing qcow AES key or LUKS passphrase',
  },
  ...prefixedOptions('encrypt.', LUKS_CREATE_OPTIONS),
];

/** In the order in which the tools show their values; their help is sorted by name. */
export const CREATE_OPTIONS: readonly CreateOption[] = [
  ...ENCRYPT_OPTIONS,
  { name: 'cluster_size', type: 'size', help: 'qcow2 cluster size', default: '65536' },
  { name: 'extended_l2', type: 'bool', help: 'Extended L2 tables', default: 'off' },
  {
    name: 'preallocation',
    type: 'string',
    help: 'Preallocation mode (allowed values: off, metadata, falloc, full)',
  },
  {
    name: 'compression_type',
    type: 'string',
    help: 'Compression method used for image cluster compression',
    default: 'zlib',
  },
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'compat', type: 'string', help: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Image format of the base image' },
  { name: 'data_file', type: 'string', help: 'File name of an external data file' },
  { name: 'data_file_raw', type: 'bool', help: 'The external data file must stay valid as a raw image' },
  { name: 'lazy_refcounts', type: 'bool', help: 'Postpone refcount updates', default: 'off' },
  { name: 'refcount_bits', type: 'number', help: 'Width of a reference count entry in bits', default: '16' },
];

/**
 * Drivers of the original that may be missing here: an image may name one as the format of its backing image, which
 * somebody else will open. Source: the enumeration BlockdevDriver in what qemu-storage-daemon 7.2 answers to query-qmp-schema.
 */
const OTHER_FORMATS: readonly string[] = (
  'blkdebug blklogwrites blkreplay blkverify bochs cloop compress copy-before-write copy-on-read dmg file ftp ftps ' +
  'gluster host_cdrom host_device http https iscsi io_uring luks nbd nfs null-aio null-co nvme parallels preallocate ' +
  'qcow qcow2 qed quorum raw rbd replication snapshot-access ssh throttle vdi vhdx vmdk vpc vvfat'
).split(' ');

// ---- values --------------------------------------------------------------------------------------------------

function checkAlias(values: CreateOptionValues): void {
  if (values.encryption === 'on' && values['encrypt.format'] !== undefined) {
    throw new BlockError("'encrypt.format' and its alias 'encryption' can't be used at the same time", {
      errno: E.EINVAL,
    });
  }
}

/** The encryption asked for; null: none. Values are checked in the order of the schema. */
function encryptOptions(values: CreateOptionValues): QCryptoBlockCreateOptions | null {
  const given = new Map(
    Object.entries(values)
      .filter(([name]) => name.startsWith('encrypt.'))
      .map(([name, value]) => [name.slice('encrypt.'.length), value]),
  );
  if (values.encryption === 'on') given.set('format', 'aes');
  if (given.size === 0) return null;
  const name = given.get('format');
  if (name === undefined) throw new BlockError("Parameter 'encrypt.format' is missing");
  // The tools say aes for what the schema calls qcow.
  const format = choice('format', name === 'aes' ? 'qcow' : name, ['qcow', 'luks']);
  given.delete('format');
  const keySecret = given.get('key-secret');
  given.delete('key-secret');
  const luks = format === 'qcow' ? {} : luksCreateOptions(Object.fromEntries(given));
  const known = new Set(format === 'qcow' ? [] : LUKS_CREATE_OPTIONS.map((option) => option.name));
  const unexpected = [...given.keys()].find((key) => !known.has(key));
  if (unexpected !== undefined) throw new BlockError(`Parameter 'encrypt.${unexpected}' is unexpected`);
  return { format, ...(keySecret !== undefined && { 'key-secret': keySecret }), ...luks };
}

/** The compatibility level, by its new names and the old ones. */
function versionOf(compat: string): 'v2' | 'v3' {
  if (compat === '0.10') return 'v2';
  if (compat === '1.1') return 'v3';
  return choice('version', compat, ['v2', 'v3']);
}

/** Everything but the nodes. */
function creationOptions(
  layer: BlockLayer,
  values: CreateOptionValues,
): Omit<Qcow2CreateOptions, 'file' | 'data-file'> {
  const given = <T>(name: string, key: string, convert: (value: string) => T): Record<string, T> => {
    const value = values[name];
    return value === undefined ? {} : { [key]: convert(value) };
  };
  const isOn = (value: string): boolean => value === 'on';
  return {
    ...given('data_file_raw', 'data-file-raw', isOn),
    ...given('extended_l2', 'extended-l2', isOn),
    // A size that is no whole number of sectors is rounded up.
    size: sizeOption(values),
    ...given('compat', 'version', versionOf),
    ...given('backing_file', 'backing-file', (value) => value),
    ...given('backing_fmt', 'backing-fmt', (value) =>
      choice('backing-fmt', value, [...Object.keys(layer.drivers), ...OTHER_FORMATS]),
    ),
    ...encryptMember(values),
    ...given('cluster_size', 'cluster-size', Number),
    ...given('preallocation', 'preallocation', (value) =>
      choice('preallocation', value, ['off', 'metadata', 'falloc', 'full']),
    ),
    ...given('lazy_refcounts', 'lazy-refcounts', isOn),
    ...given('refcount_bits', 'refcount-bits', Number),
    ...given('compression_type', 'compression-type', (value) =>
      choice('compression-type', value, ['zlib', 'zstd']),
    ),
  };
}

function encryptMember(values: CreateOptionValues): { readonly encrypt?: QCryptoBlockCreateOptions } {
  const encrypt = encryptOptions(values);
  return encrypt === null ? {} : { encrypt };
}

// ---- creation ------------------------------------------------------------------------------------------------

/** The tools' way. */
async function createFile(
  layer: BlockLayer,
  filename: string,
  values: CreateOptionValues,
  progress: CreateProgress,
): Promise<void> {
  checkAlias(values);
  const dataFile = values.data_file;
  const filenames = dataFile === undefined ? [filename] : [filename, dataFile];
  const { preallocation: _own, ...forFile } = values;
  await createInFiles(layer, filenames, forFile, progress, async ([file, data]) => {
    const options: Qcow2CreateOptions = {
      ...creationOptions(layer, values),
      file,
      ...(data !== undefined && { 'data-file': data }),
    };
    await createImage(layer, options, progress);
  });
}

export const creation: ImageCreation = {
  create: (layer, options, progress) =>
    createImage(layer, options as unknown as Qcow2CreateOptions, progress),
  options: CREATE_OPTIONS,
  amendOptions: AMEND_OPTIONS,
  createFile,
};
