/** What the original's introspection lists and ours does not, with the reason. */

interface LeftOut {
  readonly reason: string;
  /** Commands, events, values and members by name, or by the place that the comparison gives them. */
  readonly names: readonly string[];
}

export const LEFT_OUT: readonly LeftOut[] = [
  {
    reason: 'its daemon never sends it: there is no virtio-serial port',
    names: ['VSERPORT_CHANGE'],
  },
  {
    reason: 'needs a kernel module (vduse) that passes disks to the kernel; not here',
    names: ['vduse-blk'],
  },
  {
    reason:
      'devices of consoles, displays and input of a machine: listed by its schema, refused by its daemon',
    names: [
      ...['braille', 'console', 'dbus', 'msmouse', 'qemu-vdagent', 'spiceport', 'spicevmc', 'testdev', 'vc'],
      'wctablet',
    ],
  },
  {
    reason: 'objects of virtual machines: listed by its schema, "invalid object type" in its daemon',
    names: [
      ...['authz-pam', 'can-bus', 'can-host-socketcan', 'colo-compare', 'cryptodev-backend'],
      ...['cryptodev-backend-builtin', 'cryptodev-backend-lkcf', 'cryptodev-vhost-user', 'dbus-vmstate'],
      ...['filter-buffer', 'filter-dump', 'filter-mirror', 'filter-redirector', 'filter-replay'],
      ...['filter-rewriter', 'input-barrier', 'input-linux', 'memory-backend-epc', 'memory-backend-file'],
      ...['memory-backend-memfd', 'memory-backend-ram', 'pef-guest', 'qtest', 'rng-builtin', 'rng-egd'],
      ...['rng-random', 's390-pv-guest', 'sev-guest', 'x-remote-object', 'x-vfio-user-server'],
    ],
  },
];
