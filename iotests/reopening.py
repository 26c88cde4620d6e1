"""What the scripts on blockdev-reopen share: an exported graph under load, reopenings, and what is true afterwards."""

import os
import shutil

import iotests
from iotests import MIB, QmpTestCase, make_file, start_nbd_server, test_path
from load import BLOCK, Load
from nbdclient import NbdClient


def need(*programs):
    """Ends the script when a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            iotests.not_run(f'{program} is not installed')


def file(path, **more):
    """Options of a file node."""
    return {'driver': 'file', 'filename': path, **more}


class ReopenTestCase(QmpTestCase):
    """A disk of 4 MiB filled with 0x11, an NBD server, and ways to reopen and look."""

    def setUp(self):
        super().setUp()
        self.path = make_file('disk.img', 4 * MIB, pattern=0x11)
        self.socket = start_nbd_server(self.daemon)

    def add(self, options):
        self.daemon.command('blockdev-add', options)

    def export(self, node, writable=True):
        self.daemon.command('block-export-add', type='nbd', id='e', node_name=node, writable=writable, name='disk')

    def unexport(self):
        self.daemon.command('block-export-del', id='e', mode='hard')
        self.assertIsNotNone(self.daemon.event_wait('BLOCK_EXPORT_DELETED'))

    def reopen(self, *options):
        self.assert_ok('blockdev-reopen', options=list(options))

    def refused(self, description, *options):
        self.assert_error(description, 'blockdev-reopen', options=list(options))

    def load(self, **more):
        return Load(self.socket, 'disk', **more)

    def client(self):
        return NbdClient(self.socket, 'disk')

    def node(self, name):
        """What query-named-block-nodes says of the node."""
        nodes = self.daemon.command('query-named-block-nodes', flat=True)
        return next(node for node in nodes if node['node-name'] == name)

    def edges(self):
        """The block graph as (parent, edge, child)."""
        graph = self.daemon.command('x-debug-query-block-graph')
        names = {node['id']: node['name'] or node['type'] for node in graph['nodes']}
        return [(names[edge['parent']], edge['name'], names[edge['child']]) for edge in graph['edges']]

    def assert_holds(self, data, load, everything=True):
        """`data` is what the load has written, and (with `everything`) 0x11 elsewhere."""
        written = load.content()
        for offset in range(0, len(data), BLOCK) if everything else written:
            found = data[offset:offset + BLOCK]
            self.assertEqual(found, written.get(offset, b'\x11' * BLOCK), f'block at {offset}')

    def access_modes(self, name):
        """How the daemon has files of that name open: 'r' or 'rw', sorted."""
        folder = f'/proc/{self.daemon.process.pid}'
        modes = []
        for fd in os.listdir(f'{folder}/fd'):
            try:
                if os.path.basename(os.readlink(f'{folder}/fd/{fd}')) != name:
                    continue
                with open(f'{folder}/fdinfo/{fd}', encoding='ascii') as info:
                    flags = next(int(line.split()[1], 8) for line in info if line.startswith('flags:'))
            except FileNotFoundError:
                continue
            modes.append('r' if flags & os.O_ACCMODE == os.O_RDONLY else 'rw')
        return sorted(modes)


def read_file(path):
    with open(path, 'rb') as disk:
        return disk.read()


