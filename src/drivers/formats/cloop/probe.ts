/** How cloop images are known: each is a shell script that mounts itself. */

const START = '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n';

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeCloop(start: Buffer): number {
  const bytes = Math.min(start.length, START.length);
  return bytes > 0 && start.toString('latin1', 0, bytes) === START.slice(0, bytes) ? 2 : 0;
}
