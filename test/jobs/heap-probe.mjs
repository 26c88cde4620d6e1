// Loaded into a daemon under test (`--import`): at SIGUSR2 it writes a snapshot of its heap, without garbage, to $HEAP_SNAPSHOT.
import { renameSync } from 'node:fs';
import { writeHeapSnapshot } from 'node:v8';

process.on('SIGUSR2', () => {
  // What has just ended may have a turn of the loop to go.
  setTimeout(() => {
    const file = process.env.HEAP_SNAPSHOT;
    writeHeapSnapshot(`${file}.part`);
    renameSync(`${file}.part`, file);
  }, 200);
});
