/**
 * Corrupt images: how synchronous code reports damage, and what is then done about it.
 *
 * Damage found while running is thrown as ImageCorruption. The driver's callbacks turn it into an event for the
 * monitor; when it is fatal, the image is marked corrupt on the disk and takes no more I/O.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { ImageCorruption } from '../layout/damage.ts';
import { Incompat } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { writeHeader } from './metadata-io.ts';

/** Tells the monitor and the log of damage. */
function announce(node: Qcow2Node, { message, offset, size }: ImageCorruption, fatal: boolean): void {
  process.stderr.write(
    fatal
      ? `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed\n`
      : `qcow2: Image is corrupt: ${message}; further non-fatal corruption events will be suppressed\n`,
  );
  node.state.corruptionReported = true;
  node.layer.events.emit('BLOCK_IMAGE_CORRUPTED', {
    device: '',
    'node-name': node.name,
    msg: message,
    ...(offset === null ? {} : { offset, size: size ?? 0 }),
    fatal,
  });
}

/** Reports, once, damage that does not stand in the way of the request that met it. */
export function reportHarmless(node: Qcow2Node, message: string): void {
  const s = node.state;
  if (!s.dead && !s.corruptionReported) announce(node, new ImageCorruption(message, false), false);
}

/** Reports damage once; a fatal one marks the image corrupt. Returns the error for the request that met it. */
export async function reportCorruption(
  node: Qcow2Node,
  guard: GraphReadGuard,
  damage: ImageCorruption,
): Promise<Error> {
  const s = node.state;
  const fatal = damage.fatal && !node.readOnly;
  if (s.dead || (s.corruptionReported && !fatal)) return ioError(E.EIO);
  announce(node, damage, fatal);
  if (fatal) {
    s.dead = true;
    if (s.header.version >= 3) {
      s.header.incompatible |= Incompat.corrupt;
      try {
        await writeHeader(node, guard);
      } catch {
        // The image stays unmarked on the disk; this process does not touch it any more either way.
      }
    }
  }
  return ioError(E.EIO);
}

/** The error to answer a request with: damage is reported first. */
export async function toRequestError(
  node: Qcow2Node,
  guard: GraphReadGuard,
  error: unknown,
): Promise<unknown> {
  return error instanceof ImageCorruption ? reportCorruption(node, guard, error) : error;
}
