/**
 * Serial lines: raw mode, speed and breaks, by libc's termios functions.
 *
 * Here: thin bindings; results are 0, or -errno. Source of the facts: termios(3), and for struct termios glibc's headers.
 */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';

const libc = koffi.load('libc.so.6');
const cTcgetattr = libc.func('tcgetattr', 'int', ['int', 'uintptr_t']);
const cTcsetattr = libc.func('tcsetattr', 'int', ['int', 'int', 'uintptr_t']);
const cCfmakeraw = libc.func('cfmakeraw', 'void', ['uintptr_t']);
const cCfsetspeed = libc.func('cfsetspeed', 'int', ['uintptr_t', 'uint']);
const cTcsendbreak = libc.func('tcsendbreak', 'int', ['int', 'int']);

/** More than sizeof(struct termios). */
const TERMIOS_BYTES = 128;
const TCSANOW = 0;
const B115200 = 0o010002;

/** Makes a serial line carry bytes as they are, at 115200 baud, 8 bits, no parity. -ENOTTY: it is none. */
export function setSerialLine(fd: number): number {
  const termios = Buffer.allocUnsafeSlow(TERMIOS_BYTES);
  const address = addressOf(termios);
  if ((cTcgetattr(fd, address) as number) < 0) return -koffi.errno();
  cCfmakeraw(address);
  if ((cCfsetspeed(address, B115200) as number) < 0) return -koffi.errno();
  return (cTcsetattr(fd, TCSANOW, address) as number) < 0 ? -koffi.errno() : 0;
}

/** Sends a break of a quarter of a second or more, on another thread. */
export function sendBreak(fd: number): void {
  cTcsendbreak.async(fd, 0, () => undefined);
}
