/**
 * Fleecing: another program reads the disk as it is now, over NBD, while the guest goes on writing. What the guest is
 * about to overwrite is copied aside first.
 *
 * Usage: node fleecing.ts ADDRESS NODE SPACE-NODE      SPACE-NODE: an empty qcow2 node of the same size
 */

import { type Client, connect } from '../node.ts';

/** Something that ends again, in the order that the graph needs. */
export interface Snapshot {
  /** The name of the NBD export that shows the disk as it was. */
  readonly exportName: string;
  end(): Promise<void>;
}

/** Freezes what `node` shows now and exports that, read-only. The NBD server must be running. */
export async function fleece(client: Client, node: string, space: string): Promise<Snapshot> {
  const filter = `${node}-cbw`;
  const access = `${node}-then`;
  const parents = (await client.queryBlockExports()).filter((entry) => entry['node-name'] === node);
  if (parents.length > 0) throw new Error(`Export the filter instead of '${node}': see the guide on backups`);
  await client.blockdevAdd({ driver: 'copy-before-write', 'node-name': filter, file: node, target: space });
  await client.blockdevAdd({ driver: 'snapshot-access', 'node-name': access, file: filter });
  await client.blockExportAdd({ type: 'nbd', id: access, 'node-name': access, name: access });
  return {
    exportName: access,
    end: async () => {
      // The event may come before the answer to the command.
      const deleted = client.events('BLOCK_EXPORT_DELETED');
      await client.blockExportDel({ id: access, mode: 'hard' });
      for await (const { data } of deleted) if (data.id === access) break;
      await client.blockdevDel({ 'node-name': access });
      await client.blockdevDel({ 'node-name': filter });
    },
  };
}

if (process.argv[1]?.includes('fleecing') === true) {
  const [address = '', node = '', space = ''] = process.argv.slice(2);
  await using client = await connect(address);
  const snapshot = await fleece(client, node, space);
  process.stdout.write(`Read the export '${snapshot.exportName}'; end with Ctrl-C\n`);
  await new Promise((resolve) => process.once('SIGINT', resolve));
  await snapshot.end();
}
