/** The ring buffer against a model: the last bytes written and not yet read. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { openRingbuf } from '../../src/chardev/ringbuf.ts';

test('holds the last bytes written', () => {
  const step = fc.oneof(
    fc.record({ write: fc.uint8Array({ maxLength: 40 }) }),
    fc.record({ read: fc.integer({ min: 1, max: 40 }) }),
  );
  fc.assert(
    fc.property(fc.constantFrom(1, 2, 16, 32), fc.array(step, { maxLength: 30 }), (size, steps) => {
      const ring = openRingbuf({ size }, 'ringbuf');
      let model = Buffer.alloc(0);
      for (const action of steps) {
        if ('write' in action) {
          const data = Buffer.from(action.write);
          ring.write(data);
          model = Buffer.concat([model, data]);
          model = model.subarray(Math.max(0, model.length - size));
        } else {
          expect(ring.read(action.read)).toEqual(model.subarray(0, action.read));
          model = model.subarray(action.read);
        }
      }
    }),
  );
});

test.each([0, -1, 3, 5, 65537, 2 ** 31, 2 ** 40])('size %d is refused', (size) => {
  expect(() => openRingbuf({ size }, 'ringbuf')).toThrow('size of ringbuf chardev must be power of two');
});
