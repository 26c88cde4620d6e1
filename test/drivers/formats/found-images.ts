/** Images that other software made (images/README.md), unpacked into a folder, and what `convert` makes of them. */

import { createHash } from 'node:crypto';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';

const SOURCE = path.join(import.meta.dirname, 'images');

/** Unpacks all of them into a new folder. */
export function unpackImages(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-images-'));
  for (const name of readdirSync(SOURCE)) {
    const from = path.join(SOURCE, name);
    if (name.endsWith('.gz'))
      writeFileSync(path.join(folder, name.slice(0, -3)), gunzipSync(readFileSync(from)));
    else copyFileSync(from, path.join(folder, name));
  }
  return folder;
}

export function sha256(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}
