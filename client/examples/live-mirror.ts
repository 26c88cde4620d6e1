/**
 * Moves a disk to another place while its guest goes on: mirrors it, waits until the copy has caught up, and goes over.
 *
 * Usage: node live-mirror.ts ADDRESS NODE TARGET-NODE
 */

import { type Client, connect } from '../node.ts';

/** Mirrors `node` to `target` and makes `target` what the users of `node` use. `progress`: done and total bytes. */
export async function moveTo(
  client: Client,
  node: string,
  target: string,
  progress: (done: number, total: number) => void = () => undefined,
): Promise<void> {
  const id = `move-${node}`;
  await client.blockdevMirror({
    'job-id': id,
    device: node,
    target,
    sync: 'full',
    'copy-mode': 'write-blocking',
    'auto-dismiss': false,
  });
  const job = client.job(id);
  const timer = setInterval(() => {
    job.info().then((info) => {
      if (info !== null) progress(info['current-progress'], info['total-progress']);
    }, Boolean);
  }, 500);
  try {
    await job.ready();
    await job.complete();
    await job.finished();
  } finally {
    clearInterval(timer);
  }
}

if (process.argv[1]?.includes('live-mirror') === true) {
  const [address = '', node = '', target = ''] = process.argv.slice(2);
  await using client = await connect(address);
  await moveTo(client, node, target, (done, total) => process.stderr.write(`${done} of ${total} bytes\r`));
}
