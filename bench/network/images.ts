/** What the servers of bench:network have: files made once in the folder that they serve. */

import { execFileSync } from 'node:child_process';
import { closeSync, copyFileSync, existsSync, mkdirSync, openSync } from 'node:fs';
import path from 'node:path';

const MIB = 1024 * 1024;

/** Content for a compressed image: files of the system, as an image of a system has. */
const SYSTEM_FOLDERS = ['/usr/bin', '/usr/lib', '/usr/share', '/usr/sbin'];

export interface Images {
  /** Data that cannot be compressed, as a raw image. */
  readonly disk: string;
  /** The same as qcow2. */
  qcow2(): string;
  /** A compressed qcow2 image of the files of a system, as distributors publish them, and its content. */
  packed(): { readonly image: string; readonly content: string };
  /** A copy of the data under another name; overwritten by those who write to it. */
  copy(name: string): string;
}

function into(file: string, command: string): void {
  const out = openSync(file, 'w');
  // tar is ended by head, which has enough.
  execFileSync('sh', ['-c', `${command}; true`], { stdio: ['ignore', out, 'ignore'] });
  closeSync(out);
}

export function makeImages(folder: string, sizeMib: number): Images {
  const at = (name: string): string => path.join(folder, name);
  const bytes = sizeMib * MIB;
  const once = (file: string, make: () => void): string => {
    if (!existsSync(file)) make();
    return file;
  };
  const disk = once(at('disk'), () => into(at('disk'), `head -c ${bytes} /dev/urandom`));
  return {
    disk,
    qcow2: () =>
      once(at('disk.qcow2'), () =>
        execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', disk, at('disk.qcow2')]),
      ),
    packed() {
      const content = once(at('system'), () => {
        into(at('system'), `tar c ${SYSTEM_FOLDERS.join(' ')} | head -c ${bytes}`);
        execFileSync('truncate', ['-s', String(bytes), at('system')]);
      });
      const image = once(at('packed.qcow2'), () =>
        execFileSync('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', content, at('packed.qcow2')]),
      );
      return { image, content };
    },
    copy: (name) =>
      once(at(name), () => {
        mkdirSync(path.dirname(at(name)), { recursive: true });
        copyFileSync(disk, at(name));
      }),
  };
}
