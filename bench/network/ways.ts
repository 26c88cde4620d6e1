/** A server's ports, directly and behind the delay, as rows of the tables name them. */

import { DELAY_MS, type Way } from './servers.ts';

export function ways(way: Way): readonly (readonly [string, number])[] {
  const direct = ['0 ms', way.direct] as const;
  return way.delayed === 0 ? [direct] : [direct, [`${DELAY_MS} ms`, way.delayed]];
}
