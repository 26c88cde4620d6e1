/**
 * Standard input and output as a device. There is one pair, so there can be one such device.
 */

import type { ChardevStdio } from '../../schema/generated/types.ts';
import type { ChardevBackend } from './backend.ts';
import { streamBackend } from './stream.ts';

/** Opens standard input and output. `signal` false: on a terminal the interrupt key is input like any other. */
export function openStdio({ signal = true }: ChardevStdio): ChardevBackend {
  const { stdin, stdout } = process;
  const raw = stdin.isTTY === true && !signal;
  if (raw) stdin.setRawMode(true);
  return streamBackend({
    kind: 'stdio',
    filename: 'stdio',
    input: stdin,
    output: stdout,
    close: () => {
      if (raw) stdin.setRawMode(false);
      stdin.pause(); // the streams belong to the process
    },
  });
}
