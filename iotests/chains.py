"""What the scripts on stream and commit jobs have in common: a chain of images of known content, under load or not."""

import os
import subprocess
import time

import iotests
from iotests import MIB, QmpTestCase, start_nbd_server, test_path
from load import BLOCK, Load
from mirroring import content_of, qemu_img
from patience import limit

SIZE = 4 * MIB
CLUSTER = 65536
# The load leaves the rest as it was.
LOAD_BLOCKS = 512
NAMES = ('base', 'mid', 'top')
JOB_FILTERS = ('copy-on-read', 'commit_top', 'mirror_top')


class ChainTestCase(QmpTestCase):
    """qcow2 images `base`, `mid` and `top`, each with data of its own; `self.content[NAME]` is what it shows."""

    def setUp(self):
        super().setUp()
        self.content = {}
        shown = bytearray(SIZE)
        for number, name in enumerate(NAMES):
            backing = ['-F', 'qcow2', '-b', f'{NAMES[number - 1]}.qcow2'] if number else []
            qemu_img('create', '-q', '-f', 'qcow2', *backing, self.path(name), str(SIZE))
            commands = []
            for at in range(0, SIZE, CLUSTER):
                # Something of every image alone, on top of each other, and nothing at all.
                if (at // CLUSTER) % (number + 2) == 1:
                    value = number * 80 + at // CLUSTER % 61 + 1
                    commands += ['-c', f'write -P {value} {at} {CLUSTER}']
                    shown[at:at + CLUSTER] = bytes([value]) * CLUSTER
            subprocess.run(['qemu-io', *commands, self.path(name)], check=True, stdout=subprocess.DEVNULL)
            self.content[name] = bytes(shown)
        self.open()

    def tearDown(self):
        super().tearDown()
        for name in os.listdir(iotests.TEST_DIR):
            if name.endswith(('.qcow2', '.raw')):
                os.unlink(test_path(name))

    @staticmethod
    def path(name):
        return test_path(f'{name}.qcow2')

    def file_of(self, name):
        """Options of the node below an image; scripts that inject faults have others."""
        return {'driver': 'file', 'filename': self.path(name)}

    def open(self):
        """Opens the chain and exports its top as `disk`."""
        for name, backing in zip(NAMES, (None, 'base', 'mid')):
            more = {'backing': backing} if backing else {}
            self.assert_ok('blockdev-add', {'driver': 'qcow2', 'node-name': name, 'file': self.file_of(name), **more})
        self.socket = start_nbd_server(self.daemon)
        self.export('top')

    def export(self, node_name):
        self.daemon.command('block-export-add', type='nbd', id='e', node_name=node_name, writable=True, name='disk')

    def load(self, seed=1):
        return Load(self.socket, 'disk', seed=seed, blocks=(0, LOAD_BLOCKS))

    def start(self, command, **more):
        arguments = {'job-id': 'j', 'device': 'top',
                     **{name.replace('_', '-'): value for name, value in more.items()}}
        self.assert_ok(command, arguments)

    def wait(self, name):
        """The event's data."""
        event = self.daemon.event_wait(name, 60)
        self.assertIsNotNone(event, f'no {name}; jobs: {self.jobs()}')
        return event['data']

    def jobs(self):
        return self.daemon.command('query-block-jobs')

    def nodes(self):
        return self.daemon.command('query-named-block-nodes', flat=True)

    def names(self):
        """The nodes the script has made that are there, and those of filters, in order."""
        return sorted(node['node-name'] for node in self.nodes()
                      if node['node-name'] in NAMES or node['drv'] in JOB_FILTERS)

    def ended(self, error=None):
        self.assertEqual(self.wait('BLOCK_JOB_COMPLETED').get('error'), error)
        self.gone()

    def cancelled(self):
        self.wait('BLOCK_JOB_CANCELLED')
        self.gone()

    def gone(self):
        """Nothing of the job is left. It disappears right after its last event."""
        deadline = time.monotonic() + limit(10)
        while self.jobs() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.jobs(), [])
        self.assertEqual([node['drv'] for node in self.nodes() if node['drv'] in JOB_FILTERS], [])

    def complete(self):
        self.wait('BLOCK_JOB_READY')
        self.assert_ok('block-job-complete', device='j')
        self.ended()

    def backing_of(self, name):
        """What the image says of its backing file; None when nothing."""
        node = next(node for node in self.nodes() if node['node-name'] == name)
        backing = node['image'].get('backing-filename')
        return None if backing is None else os.path.basename(backing)

    def exported_node(self):
        return self.daemon.command('query-block-exports')[0]['node-name']

    def stop(self):
        """Ends the daemon in good order: the images are complete and nobody has them open."""
        self.assert_ok('quit')
        self.assertEqual(self.daemon.process.wait(limit(20)), 0, self.daemon.stderr())

    def expected(self, load, content=None):
        """What a disk shows that had `content` (default: what top showed) before the load."""
        data = bytearray(self.content['top'] if content is None else content)
        for offset, block in load.content().items():
            data[offset:offset + BLOCK] = block
        return bytes(data)

    def check_image(self, name, expected, in_flight=0):
        """The image is in order and shows this; `in_flight` blocks may differ, which were written when all ended."""
        status = subprocess.run(['qemu-img', 'check', '-q', self.path(name)], stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL).returncode
        # 3: clusters that nobody refers to, which a daemon leaves that is killed.
        self.assertIn(status, (0, 3) if in_flight else (0,))
        found = content_of(self.path(name), 'qcow2')
        self.assertEqual(len(found), len(expected))
        differs = [at for at in range(0, SIZE, BLOCK) if found[at:at + BLOCK] != expected[at:at + BLOCK]]
        self.assertLessEqual(len(differs), in_flight, f'{name} differs at {differs[:3]}')
