/** A block layer of the product's drivers for tests in process, and what they need to make and look at images. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { drivers } from '../../../src/drivers/table.ts';

export interface SeenEvent {
  readonly name: string;
  readonly data: unknown;
}

/** A layer over the default engine; `events` collects what it emits. `secret`: what all secrets hold. */
export function testLayer(secret = ''): { layer: BlockLayer; events: SeenEvent[]; close(): Promise<void> } {
  const { engine } = createEngine('auto');
  const events: SeenEvent[] = [];
  const layer = new BlockLayer({
    engine,
    events: { emit: (name, data) => void events.push({ name, data }) },
    drivers,
    secret: () => Buffer.from(secret),
  });
  return {
    layer,
    events,
    close: async () => {
      await layer.closeAll();
      engine.close();
    },
  };
}

export function scratch(): string {
  return mkdtempSync(path.join(tmpdir(), 'qb-qcow2-'));
}

/** Runs a peer tool and returns its output; throws with its stderr when it fails. */
export function peer(tool: string, ...args: readonly string[]): string {
  return execFileSync(tool, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** The result of `qemu-img check`: its report when it is not all right. */
export function checkImage(file: string, format = 'qcow2'): { status: number; output: string } {
  try {
    return { status: 0, output: peer('qemu-img', 'check', '-f', format, file) };
  } catch (error) {
    const { status, stdout, stderr } = error as { status: number; stdout: string; stderr: string };
    return { status, output: stdout + stderr };
  }
}
