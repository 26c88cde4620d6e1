/** Telnet commands are taken out of the input, however it is cut. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { telnetFilter } from '../../src/chardev/telnet.ts';

const piece = fc.oneof(
  fc.stringMatching(/^[a-z]{0,5}$/).map((text) => ({ sent: Buffer.from(text), kept: Buffer.from(text) })),
  fc.constantFrom(
    { sent: Buffer.from([255, 253, 1]), kept: Buffer.alloc(0) },
    { sent: Buffer.from([255, 251, 31]), kept: Buffer.alloc(0) },
    { sent: Buffer.from([255, 250, 24, 0, 97, 255, 255, 98, 255, 240]), kept: Buffer.alloc(0) },
    { sent: Buffer.from([255, 241]), kept: Buffer.alloc(0) },
    { sent: Buffer.from([255, 255]), kept: Buffer.from([255]) },
  ),
);

test('data stays, commands go', () => {
  fc.assert(
    fc.property(fc.array(piece), fc.integer({ min: 1, max: 7 }), (pieces, chunkBytes) => {
      const filter = telnetFilter('telnet');
      const sent = Buffer.concat(pieces.map(({ sent: bytes }) => bytes));
      const received: Buffer[] = [];
      for (let at = 0; at < sent.length; at += chunkBytes)
        received.push(filter(sent.subarray(at, at + chunkBytes)));
      expect(Buffer.concat(received)).toEqual(Buffer.concat(pieces.map(({ kept }) => kept)));
    }),
  );
});

test("tn3270: ends of records and subnegotiations are the terminal's, options are not", () => {
  const filter = telnetFilter('tn3270');
  const kept = (hex: string): string => filter(Buffer.from(hex, 'hex')).toString('hex');
  expect(kept('41fffb19fffd0042')).toBe('4142');
  expect(kept('fffa18004142fff0')).toBe('fffa18004142fff0');
  expect(kept('41ffef')).toBe('41ffef');
  expect(kept('ffff')).toBe('ff');
  expect(kept('fff141')).toBe('41');
});
