"""What the scripts on backups share: a disk with writers, targets, and waiting for jobs."""

from history import BLOCK, Writers, block_of, read_all
from iotests import MIB, QmpTestCase, make_file, start_nbd_server

SIZE = 6 * MIB
INITIAL = 0x1111111111111111
assert block_of(INITIAL) == b'\x11' * BLOCK


class BackupTestCase(QmpTestCase):
    """Node `s` over a file of a known pattern; node `disk_node` is exported as `disk`."""

    disk_node = 's'

    def setUp(self):
        super().setUp()
        self.path = make_file('source.img', SIZE, pattern=0x11)
        self.add_source()
        self.socket = start_nbd_server(self.daemon)
        self.share(self.disk_node, 'disk', writable=True)

    def add_source(self):
        self.daemon.command('blockdev-add', driver='file', node_name='s', filename=self.path, discard='unmap')

    def share(self, node, name=None, writable=False):
        self.daemon.command('block-export-add', type='nbd', id=name or node, node_name=node, writable=writable,
                            name=name or node)

    def unshare(self, name):
        self.daemon.command('block-export-del', id=name, mode='hard')
        self.assertIsNotNone(self.daemon.event_wait('BLOCK_EXPORT_DELETED'))

    def add_target(self, kind, name, **options):
        """A node over a new file; qcow2 images have no backing image but by options."""
        path = make_file(name, SIZE if kind == 'raw' else 0)
        self.daemon.command('blockdev-add', driver='file', node_name=name + '-file', filename=path)
        if kind == 'qcow2':
            self.daemon.command('blockdev-create', job_id='create',
                                options={'driver': 'qcow2', 'file': name + '-file', 'size': SIZE})
            self.wait_for_job('create', 'concluded')
            self.daemon.command('job-dismiss', id='create')
        self.daemon.command('blockdev-add', driver=kind, node_name=name, file=name + '-file', **options)

    def wait_for_job(self, name, status):
        while True:
            event = self.daemon.event_wait('JOB_STATUS_CHANGE', timeout=60)
            self.assertIsNotNone(event)
            if event['data'] == {'id': name, 'status': status}:
                return

    def backup(self, target, sync='full', job='j', **options):
        self.daemon.command('blockdev-backup', {'x-perf': options.pop('perf', {})}, job_id=job, device='s',
                            target=target, sync=sync, **options)

    def wait_for_end(self, job='j'):
        """The data of the job's last event of its own."""
        event = self.daemon.event_wait('BLOCK_JOB_COMPLETED', timeout=60)
        self.assertIsNotNone(event)
        self.assertEqual(event['data']['device'], job)
        self.wait_for_job(job, 'null')
        return event['data']

    def assert_success(self, job='j'):
        data = self.wait_for_end(job)
        self.assertNotIn('error', data)
        self.assertEqual(data['offset'], data['len'])

    def writers(self, **options):
        return Writers(self.socket, 'disk', SIZE, initial=INITIAL, **options)

    def content(self, node):
        """What a node shows, by an export of its own."""
        self.share(node, 'look')
        data = read_all(self.socket, 'look', SIZE)
        self.unshare('look')
        return data

    def check_source(self, writers):
        """The disk is as the writers left it, and no filter is left on it."""
        writers.check(self)
        end = writers.position()
        with open(self.path, 'rb') as file:
            writers.check_moment(self, file.read(), end, end)
        self.assert_no_filter()

    def assert_no_filter(self):
        nodes = self.daemon.command('query-named-block-nodes', flat=True)
        self.assertNotIn('copy-before-write', [node['drv'] for node in nodes])
        for node in nodes:
            self.assertEqual([each for each in node.get('dirty-bitmaps', []) if 'name' not in each], [])
        self.assertEqual(self.daemon.command('query-jobs'), [])
