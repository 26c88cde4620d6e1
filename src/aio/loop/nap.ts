/** A moment's sleep of the thread. */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';

const libc = koffi.load('libc.so.6');
const cNanosleep = libc.func('nanosleep', 'int', ['uintptr_t', 'uintptr_t']);
const cPrctl = libc.func('prctl', 'int', ['int', 'ulong', 'ulong', 'ulong', 'ulong']);
/** struct timespec. */
const napMemory = Buffer.allocUnsafeSlow(16).fill(0);
const napAddr = addressOf(napMemory);
let isSlackSet = false;

/** Sleeps for so many microseconds, fewer than a thousand; the thread does nothing else. */
export function nap(us: number): void {
  if (!isSlackSet) {
    // The kernel lets sleeps be late by 50 us unless told that this thread is in earnest.
    const PR_SET_TIMERSLACK = 29;
    cPrctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    isSlackSet = true;
  }
  napMemory.writeUInt32LE(us * 1000, 8);
  cNanosleep(napAddr, 0);
}
