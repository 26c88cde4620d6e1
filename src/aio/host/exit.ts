/** The end of the process, which no library's call may hold up. */

import koffi from 'koffi';
import { pooledCalls } from './pooled-calls.ts';

/**
 * process.exit; at once when libuv's threads are in calls of libraries, for which process.exit would wait, be it for ever.
 * Whatever is to be written must have been.
 */
export function exitProcess(status: number): never {
  if (pooledCalls() > 0) koffi.load(null).func('_exit', 'void', ['int'])(status);
  process.exit(status);
}
