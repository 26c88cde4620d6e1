/**
 * A random model of a disk with several clients: each owns every n-th block and pipelines requests on its own, and
 * what it reads from its blocks must be what it wrote there last.
 */

import fc from 'fast-check';
import { Command, CommandFlag } from '../../src/nbd/protocol/messages.ts';
import type { DiskClient } from './disk-client.ts';

const BLOCK = 4096;
/** A unit holds one block of each client; operations of a client touch its block, or a part of it, in one unit. */
export type Operation =
  | {
      readonly kind: 'write';
      readonly unit: number;
      readonly at: number;
      readonly length: number;
      readonly byte: number;
      readonly fua: boolean;
    }
  | {
      readonly kind: 'zero';
      readonly unit: number;
      readonly at: number;
      readonly length: number;
      readonly noHole: boolean;
    }
  | { readonly kind: 'trim'; readonly unit: number }
  | {
      readonly kind: 'read';
      readonly unit: number;
      readonly at: number;
      readonly length: number;
      readonly df: boolean;
    }
  | { readonly kind: 'flush' };

function range() {
  return fc
    .tuple(fc.nat(BLOCK - 1), fc.integer({ min: 1, max: BLOCK }))
    .map(([at, length]) => ({ at, length: Math.min(length, BLOCK - at) }));
}

/** Operations of one client. */
export function operations(units: number): fc.Arbitrary<Operation[]> {
  const unit = fc.nat(units - 1);
  return fc.array(
    fc.oneof(
      {
        weight: 4,
        arbitrary: fc
          .record({
            kind: fc.constant('write' as const),
            unit,
            range: range(),
            byte: fc.integer({ min: 1, max: 255 }),
            fua: fc.boolean(),
          })
          .map(({ range: r, ...rest }) => ({ ...rest, ...r })),
      },
      {
        weight: 2,
        arbitrary: fc
          .record({ kind: fc.constant('zero' as const), unit, range: range(), noHole: fc.boolean() })
          .map(({ range: r, ...rest }) => ({ ...rest, ...r })),
      },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant('trim' as const), unit }) },
      {
        weight: 4,
        arbitrary: fc
          .record({ kind: fc.constant('read' as const), unit, range: range(), df: fc.boolean() })
          .map(({ range: r, ...rest }) => ({ ...rest, ...r })),
      },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant('flush' as const) }) },
    ),
    { minLength: 1, maxLength: 60 },
  );
}

/**
 * Runs one client's operations. Operations on the same unit wait for one another, others overlap. `discardZeroes`:
 * a discarded block reads as zeroes; otherwise its content is open until it is written again.
 */
export async function runModel(
  client: DiskClient,
  index: number,
  clients: number,
  list: readonly Operation[],
  structured: boolean,
): Promise<Map<number, Buffer>> {
  const blocks = new Map<number, Buffer>();
  const tails = new Map<number, Promise<void>>();
  const blockOf = (unit: number): Buffer => {
    const known = blocks.get(unit);
    if (known !== undefined) return known;
    const fresh = Buffer.alloc(BLOCK);
    blocks.set(unit, fresh);
    return fresh;
  };
  const all: Promise<void>[] = [];
  for (const operation of list) {
    if (operation.kind === 'flush') {
      all.push(client.command(Command.FLUSH, 0, 0));
      continue;
    }
    const { unit } = operation;
    const offset = (unit * clients + index) * BLOCK;
    const run = async (): Promise<void> => {
      const block = blockOf(unit);
      switch (operation.kind) {
        case 'write':
          await client.write(
            offset + operation.at,
            Buffer.alloc(operation.length, operation.byte),
            operation.fua ? CommandFlag.fua : 0,
          );
          block.fill(operation.byte, operation.at, operation.at + operation.length);
          return;
        case 'zero':
          await client.command(
            Command.WRITE_ZEROES,
            offset + operation.at,
            operation.length,
            operation.noHole ? CommandFlag.noHole : 0,
          );
          block.fill(0, operation.at, operation.at + operation.length);
          return;
        case 'trim': {
          await client.command(Command.TRIM, offset, BLOCK);
          // A hint: the block reads as before or as zeroes. Which it is, is found out here.
          const now = await client.read(offset, BLOCK);
          if (!now.equals(block) && !now.equals(Buffer.alloc(BLOCK)))
            throw new Error(`unit ${unit}: wrong after trim`);
          now.copy(block);
          return;
        }
        case 'read': {
          const flags = operation.df && structured ? CommandFlag.df : 0;
          const data = await client.read(offset + operation.at, operation.length, flags);
          if (!data.equals(block.subarray(operation.at, operation.at + operation.length))) {
            throw new Error(`unit ${unit} of client ${index}: read what was not written`);
          }
        }
      }
    };
    const tail = (tails.get(unit) ?? Promise.resolve()).then(run);
    tails.set(unit, tail);
    all.push(tail);
  }
  await Promise.all(all);
  return blocks;
}

/** The whole disk as the clients' models have it. */
export function mergeModels(models: readonly ReadonlyMap<number, Buffer>[], units: number): Buffer {
  const disk = Buffer.alloc(units * models.length * BLOCK);
  for (const [index, model] of models.entries()) {
    for (const [unit, block] of model) block.copy(disk, (unit * models.length + index) * BLOCK);
  }
  return disk;
}
