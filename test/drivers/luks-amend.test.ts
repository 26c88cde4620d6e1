/** Key slots added and erased: every step done by qemu-img and here, with equal messages and volumes that open alike. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { QCryptoBlockAmendOptionsLUKS } from '../../schema/generated/types.ts';
import { createLuks, openLuks, readLuksInfo } from '../../src/drivers/crypto/luks.ts';
import { amendLuks, type HeaderAccess } from '../../src/drivers/crypto/luks-amend.ts';
import { BlockError } from '../../src/errors/error.ts';
import { requirePeer } from '../peers/requires.ts';
import { PASSPHRASE, qemu, qemuReads, readerOf, SECRETS } from './luks-images.ts';

const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-amend-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

let base: Buffer;
beforeAll(async () => {
  const { header, payloadOffset } = await createLuks({ 'iter-time': 0 }, Buffer.from(PASSPHRASE));
  base = Buffer.concat([header, Buffer.alloc(payloadOffset + 4096 - header.length)]);
});

function accessOf(volume: Buffer): HeaderAccess {
  return {
    read: readerOf(volume),
    write: async (offset, data) => {
      data.copy(volume, offset);
    },
    flush: async () => {},
  };
}

/** A step: options as written on the command line, and the secret the volume is opened with. */
interface Step {
  readonly options: string;
  readonly secret?: 's' | 'n';
  readonly force?: boolean;
}

function parse(options: string): QCryptoBlockAmendOptionsLUKS {
  const entries = options.split(',').map((pair) => {
    const [key = '', value = ''] = pair.split('=');
    return [key, key === 'keyslot' || key === 'iter-time' ? Number(value) : value];
  });
  return Object.fromEntries(entries) as QCryptoBlockAmendOptionsLUKS;
}

function passphraseOf(id: string): Buffer {
  if (!Object.hasOwn(SECRETS, id)) throw new BlockError(`No secret with id '${id}'`);
  return Buffer.from(SECRETS[id as keyof typeof SECRETS]);
}

async function ours(volume: Buffer, { options, secret = 's', force = false }: Step): Promise<string> {
  try {
    const context = { passphraseOf, currentSecret: secret, force };
    await amendLuks(accessOf(volume), parse(options), context);
    return '';
  } catch (error) {
    return error instanceof BlockError ? error.message : String(error);
  }
}

function theirs(volume: Buffer, { options, secret = 's', force = false }: Step): string {
  const file = path.join(dir, 'theirs.luks');
  writeFileSync(file, volume);
  const image = `driver=luks,file.filename=${file},key-secret=${secret}`;
  const args = ['amend', ...(force ? ['--force'] : []), '--image-opts', image, '-o', options];
  const { error } = qemu('qemu-img', args, file);
  readFileSync(file).copy(volume);
  return error;
}

async function activeSlots(volume: Buffer): Promise<boolean[]> {
  return (await readLuksInfo(readerOf(volume))).slots.map(({ active }) => active);
}

/** Which of the secrets open the volume, here and in QEMU. */
async function openers(volume: Buffer): Promise<string[]> {
  const found: string[] = [];
  for (const id of ['s', 'n', 'w'] as const) {
    const opened = await openLuks(readerOf(volume), passphraseOf(id)).catch(() => null);
    const read = Buffer.isBuffer(qemuReads(dir, volume, id));
    expect(opened !== null, `secret ${id}`).toBe(read);
    if (read) found.push(id);
  }
  return found;
}

const add = (more = ''): Step => ({ options: `state=active,new-secret=n,iter-time=0${more}` });

const REFUSALS: readonly Step[] = [
  { options: 'state=active' },
  { options: 'state=active,new-secret=n,old-secret=w' },
  { options: 'state=active,new-secret=zz' },
  { options: 'state=active,new-secret=zz,keyslot=9' },
  { options: 'state=active,new-secret=zz,keyslot=0' },
  { options: 'state=active,new-secret=n,keyslot=-1' },
  { options: 'state=active,new-secret=n,keyslot=8' },
  { options: 'state=inactive' },
  { options: 'state=inactive,keyslot=9' },
  { options: 'state=inactive,keyslot=7' },
  { options: 'state=inactive,keyslot=0' },
  { options: 'state=inactive,old-secret=w' },
  { options: 'state=inactive,old-secret=s' },
  { options: 'state=inactive,old-secret=zz,keyslot=9' },
  { options: 'state=inactive,keyslot=0,old-secret=w' },
  { options: 'state=inactive,keyslot=7,old-secret=w' },
  { options: 'state=inactive,new-secret=n,iter-time=3' },
  { options: 'state=inactive,iter-time=3,keyslot=0' },
];

test.for(REFUSALS)('refused: $options', async (step, context) => {
  requirePeer(context, 'qemu-img');
  const volume = Buffer.from(base);
  const message = await ours(volume, step);
  expect(message).toBe(theirs(Buffer.from(base), step));
  expect(message).not.toBe('');
  expect(volume.equals(base)).toBe(true);
});

const SEQUENCES: Readonly<Record<string, readonly Step[]>> = {
  'add, erase the old': [add(), { options: 'state=inactive,old-secret=s' }],
  'add to a slot, erase by number': [
    add(',keyslot=5'),
    { options: 'state=inactive,keyslot=0', secret: 'n' },
    { options: 'state=inactive,keyslot=5', secret: 'n' },
  ],
  'replace by force': [{ ...add(',keyslot=0'), force: true }],
  'erase everything by force': [{ options: 'state=inactive,keyslot=0', force: true }],
  'erase an empty slot by force': [{ options: 'state=inactive,keyslot=3', force: true }],
};

test.for(Object.entries(SEQUENCES))('%s', async ([, steps], context) => {
  requirePeer(context, 'qemu-img');
  const mine = Buffer.from(base);
  const reference = Buffer.from(base);
  for (const step of steps) {
    expect(await ours(mine, step)).toBe(theirs(reference, step));
    expect(await activeSlots(mine)).toEqual(await activeSlots(reference));
  }
  expect(await openers(mine)).toEqual(await openers(reference));
});

test('all slots full, then all of one passphrase erased', async () => {
  const volume = Buffer.from(base);
  for (let i = 1; i < 8; i++) expect(await ours(volume, add())).toBe('');
  expect(await ours(volume, { options: 'state=active,new-secret=zz' })).toBe(
    "Can't add a keyslot - all keyslots are in use",
  );
  expect(await ours(volume, { options: 'state=inactive,old-secret=n' })).toBe('');
  expect(await activeSlots(volume)).toEqual([true, ...Array(7).fill(false)]);
});

test('at every write the volume opens with what was not taken away', async () => {
  const volume = Buffer.from(base);
  const opens = async (): Promise<boolean> =>
    openLuks(readerOf(volume), passphraseOf('s')).then(
      () => true,
      () => false,
    );
  let writes = 0;
  const access: HeaderAccess = {
    ...accessOf(volume),
    write: async (offset, data) => {
      // Half of the data has arrived.
      if (data.length > 592) data.copy(volume, offset, 0, data.length / 2);
      expect(await opens()).toBe(true);
      data.copy(volume, offset);
      expect(await opens()).toBe(true);
      writes += 1;
    },
  };
  const context = { passphraseOf, currentSecret: 's', force: false };
  await amendLuks(access, parse('state=active,new-secret=n,iter-time=0'), context);
  await amendLuks(access, parse('state=inactive,old-secret=n'), context);
  expect(writes).toBe(4);
});

test('a wrong passphrase adds nothing', async () => {
  const volume = Buffer.from(base);
  expect(await ours(volume, { options: 'state=active,new-secret=n,secret=w' })).toBe(
    'Invalid password, cannot unlock any keyslot',
  );
  expect(volume.equals(base)).toBe(true);
});
