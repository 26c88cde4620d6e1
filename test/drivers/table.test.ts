/** The table of drivers: what is listed before loading is what the driver says of itself. */

import { describe, expect, test } from 'vitest';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { driverBehind, FACE_MEMBERS, type LazyDriver } from '../../src/block/contract/face.ts';
import { drivers } from '../../src/drivers/table.ts';

describe('faces', () => {
  for (const [name, face] of Object.entries<BlockDriver | LazyDriver>(drivers)) {
    test(name, async () => {
      const driver = await driverBehind(face);
      expect(driver.open).toBeTypeOf('function');
      expect(face.name).toBe(name);
      for (const member of FACE_MEMBERS) expect(face[member], member).toBe(driver[member]);
    });
  }
});
