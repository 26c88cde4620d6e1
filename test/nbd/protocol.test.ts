/** The protocol table: sizes, positions, names. */

import { expect, test } from 'vitest';
import { Layouts, nameIn, Option, Reply } from '../../src/nbd/protocol/messages.ts';

test('layouts have the sizes of the protocol document', () => {
  const sizes = Object.fromEntries(Object.entries(Layouts).map(([name, { bytes }]) => [name, bytes]));
  expect(sizes).toEqual({
    greeting: 18,
    clientFlags: 4,
    option: 16,
    optionReply: 20,
    exportNameReply: 10,
    serverReply: 4,
    infoExport: 12,
    infoText: 2,
    infoBlockSize: 14,
    metaContextReply: 4,
    request: 28,
    extendedRequest: 32,
    simpleReply: 16,
    structuredReply: 20,
    extendedReply: 32,
    chunkOffsetData: 8,
    chunkOffsetHole: 12,
    chunkError: 6,
    chunkBlockStatus: 4,
    extent: 8,
    chunkBlockStatusExt: 8,
    extentExt: 16,
    blockStatusFilter: 8,
  });
});

test('fields lie where the request path reads them', () => {
  expect(Layouts.request.at).toEqual({ magic: 0, flags: 4, type: 6, cookie: 8, offset: 16, length: 24 });
  expect(Layouts.extendedRequest.at).toEqual(Layouts.request.at);
  expect(Layouts.structuredReply.at).toEqual({ magic: 0, flags: 4, type: 6, cookie: 8, length: 16 });
  expect(Layouts.extendedReply.at).toEqual({
    magic: 0,
    flags: 4,
    type: 6,
    cookie: 8,
    offset: 16,
    length: 24,
  });
});

test('what is written can be read', () => {
  const values = {
    magic: 0x25609513,
    flags: 0xffff,
    type: 7,
    cookie: 2n ** 64n - 1n,
    offset: 1n << 63n,
    length: 0xffffffff,
  };
  const bytes = Layouts.request.encode(values, Buffer.from('rest'));
  expect(bytes.subarray(28).toString()).toBe('rest');
  expect(Layouts.request.read(bytes)).toEqual(values);
  expect(bytes.subarray(0, 8).toString('hex')).toBe('25609513ffff0007');
  expect(() => Layouts.request.read(Buffer.alloc(27))).toThrow(RangeError);
});

test('numbers have names', () => {
  expect(nameIn(Option, 10)).toBe('SET_META_CONTEXT');
  expect(nameIn(Reply, 0x80000006)).toBe('ERR_UNKNOWN');
  expect(nameIn(Reply, 99)).toBe('99');
});
