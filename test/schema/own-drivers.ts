/** Block drivers, and options of drivers, that the original does not have. */

const REPEATED = ['retries', 'retry-delay'] as const;

/** Options by driver. */
const OWN_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  ftp: [...REPEATED, 'connections'],
  ftps: [...REPEATED, 'connections'],
  http: [...REPEATED, 'connections', 'force-range', 'in-order'],
  https: [...REPEATED, 'connections', 'force-range', 'in-order'],
  ssh: [...REPEATED, 'timeout', 'known-hosts', 'identity-file'],
};

/** The options as [owner, member], as the comparison names them. */
export function ownOptions(): string[] {
  return Object.entries(OWN_OPTIONS).flatMap(([driver, names]) =>
    names.map((name) => `blockdev-add/${driver} ${name}`),
  );
}

/** Drivers that Debian's build of the original does not have. */
export const OWN_DRIVERS: ReadonlySet<string> = new Set([
  ...[
    'cache',
    'readahead',
    'retry',
    's3',
    'io_uring',
    'nvme-io_uring',
    'virtio-blk-vfio-pci',
    'virtio-blk-vhost-user',
    'virtio-blk-vhost-vdpa',
  ],
]);
