"""What the scripts on snapshots and transactions have in common: disks, and a writer that knows its own history.

The writer writes blocks of several exports one after another, each with the number of the write. So a point in time
shows: whatever was kept of all disks at one moment is what the first N writes have left, for some N, and nothing else.
"""

import random
import threading
import time

from iotests import MIB, QmpTestCase, filter_text, make_file, start_nbd_server, test_path
from load import BLOCK, block_of
from nbdclient import NbdClient
from patience import limit

SIZE = MIB
BLOCKS = 64


class Writer:
    """Writes to the exports in a thread of its own until it is stopped."""

    def __init__(self, socket, exports, seed=1, flush_every=0):
        self.clients = [NbdClient(socket, name, timeout=60) for name in exports]
        self.flush_every = flush_every
        self.flushed = 0
        self.history = []  # (disk, block), of writes 1, 2, 3...
        self.acknowledged = 0
        self.error = None
        self.stopping = False
        self.random = random.Random(seed)
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.stopping:
                disk = self.random.randrange(len(self.clients))
                block = self.random.randrange(BLOCKS)
                self.history.append((disk, block))
                number = len(self.history)
                self.clients[disk].write(block * BLOCK, block_of(block, number))
                self.acknowledged = number
                if self.flush_every and number % self.flush_every == 0:
                    for client in self.clients:
                        client.flush()
                    self.flushed = number
        except Exception as error:  # whatever it is, the test shows it
            self.error = error

    def __enter__(self):
        self.thread.start()
        self.progress()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.thread.join(60)

    def progress(self, writes=20):
        """Returns when so many writes more have been made."""
        target = self.acknowledged + writes
        deadline = time.monotonic() + limit(60)
        while self.acknowledged < target and self.error is None:
            if time.monotonic() > deadline:
                raise RuntimeError('the writer does not get on')
            time.sleep(0.001)

    def disconnect(self):
        for client in self.clients:
            client.disconnect()

    def disks_after(self, count):
        """What the first writes leave of blank disks."""
        disks = [bytearray(SIZE) for _ in self.clients]
        for number, (disk, block) in enumerate(self.history[:count], 1):
            disks[disk][block * BLOCK:(block + 1) * BLOCK] = block_of(block, number)
        return [bytes(disk) for disk in disks]

    def last_write_in(self, disks):
        """The number of the newest write that is there."""
        newest = 0
        for disk in disks:
            for block in range(BLOCKS):
                at = block * BLOCK
                newest = max(newest, int.from_bytes(disk[at + 4:at + 8], 'big'))
        return newest

    def check_moment(self, case, disks, at_least=0):
        """Fails unless the disks are as they were at one moment; returns the number of the last write before it."""
        moment = self.last_write_in(disks)
        case.assertGreaterEqual(moment, at_least)
        case.assertTrue(self.disks_after(moment) == disks, f'not what the first {moment} writes leave')
        return moment

    def check_after_crash(self, case, disks):
        """Fails unless each block holds what it held at the last flush, or something that was written later."""
        possible = {}
        for number, (disk, block) in enumerate(self.history, 1):
            if number <= self.flushed:
                possible[disk, block] = [number]
            else:
                possible.setdefault((disk, block), [0]).append(number)
        for (disk, block), numbers in possible.items():
            found = disks[disk][block * BLOCK:(block + 1) * BLOCK]
            case.assertIn(found, [block_of(block, number) for number in numbers],
                          f'block {block} of disk {disk}, which was last flushed in write {numbers[0]}')

    def check(self, case):
        case.assertIsNone(self.error)
        case.assertGreater(self.acknowledged, 0)


class PointInTimeTestCase(QmpTestCase):
    """A daemon with an NBD server and disks on it."""

    def setUp(self):
        super().setUp()
        self.socket = start_nbd_server(self.daemon)

    def add_raw(self, name, size=SIZE):
        path = make_file(f'{name}.img', size)
        self.assert_ok('blockdev-add', {'driver': 'raw', 'node-name': name,
                                        'file': {'driver': 'file', 'filename': path}})
        return path

    def create(self, options):
        """Runs blockdev-create to its end."""
        self.assert_ok('blockdev-create', job_id='create', options=options)
        while True:
            event = self.daemon.event_wait('JOB_STATUS_CHANGE')
            self.assertIsNotNone(event)
            if event['data'] == {'id': 'create', 'status': 'concluded'}:
                break
        self.assertNotIn('error', self.assert_ok('query-jobs')[0])
        self.assert_ok('job-dismiss', id='create')

    def make_qcow2(self, name, size=SIZE, **more):
        path = make_file(f'{name}.qcow2', 0)
        file = {'driver': 'file', 'filename': path}
        self.assert_ok('blockdev-add', {**file, 'node-name': 'new'})
        self.create({'driver': 'qcow2', 'file': 'new', 'size': size, **more})
        self.assert_ok('blockdev-del', node_name='new')
        return path

    def add_qcow2(self, name, size=SIZE, **more):
        path = self.make_qcow2(name, size)
        self.assert_ok('blockdev-add', {'driver': 'qcow2', 'node-name': name,
                                        'file': {'driver': 'file', 'filename': path}, **more})
        return path

    def export(self, node, name=None, writable=True, **more):
        self.assert_ok('block-export-add', type='nbd', id=name or node, node_name=node, writable=writable,
                       name=name or node, **more)

    def unexport(self, name):
        self.assert_ok('block-export-del', id=name, mode='hard')
        self.assertIsNotNone(self.daemon.event_wait('BLOCK_EXPORT_DELETED', 30))

    def read(self, export, size=SIZE):
        client = NbdClient(self.socket, export, timeout=60)
        data = client.read(0, size)
        client.disconnect()
        return data

    def read_node(self, node, size=SIZE):
        """Content of a node, by an export for the occasion."""
        self.export(node, 'look', writable=False)
        data = self.read('look', size)
        self.unexport('look')
        return data

    def dirty_blocks(self, node, bitmap):
        """Numbers of the dirty blocks of a bitmap, granularity 4 KiB, that nobody changes meanwhile."""
        self.export(node, 'bits', writable=False, bitmaps=[bitmap])
        context = f'qemu:dirty-bitmap:{bitmap}'
        client = NbdClient(self.socket, 'bits', contexts=[context], timeout=60)
        extents = client.block_status(0, client.size)[context]
        client.disconnect()
        self.unexport('bits')
        at, dirty = 0, set()
        for length, flags in extents:
            if flags:
                dirty.update(range(at // BLOCK, (at + length) // BLOCK))
            at += length
        return dirty

    def transaction(self, *actions, **properties):
        """The whole reply."""
        more = {'properties': {name.replace('_', '-'): value for name, value in properties.items()}} if properties \
            else {}
        return self.daemon.qmp('transaction', {'actions': [{'type': kind, 'data': data} for kind, data in actions],
                                               **more})

    def assert_transaction(self, *actions, **properties):
        reply = self.transaction(*actions, **properties)
        self.assertIn('return', reply, reply)

    def assert_refused(self, description, *actions, **properties):
        reply = self.transaction(*actions, **properties)
        self.assertIn('error', reply, 'the transaction succeeded')
        self.assertEqual(filter_text(reply['error']['desc']), description)

    def jobs_ended(self, count):
        """Waits until so many block jobs have ended; returns {id: (event, error or None)}. None is left."""
        ended = {}
        deadline = time.monotonic() + limit(60)
        while len(ended) < count:
            for event in self.daemon.client.events:
                if event['event'] in ('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'):
                    ended[event['data']['device']] = (event['event'], event['data'].get('error'))
            self.assertLess(time.monotonic(), deadline, f'ended: {ended}')
            if len(ended) < count:
                self.daemon.command('query-jobs')
                time.sleep(0.01)
        while self.daemon.command('query-jobs'):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        self.daemon.client.events.clear()
        return ended

    def assert_jobs_complete(self, *names):
        self.assertEqual(self.jobs_ended(len(names)), {name: ('BLOCK_JOB_COMPLETED', None) for name in names})

    def graph(self):
        """All nodes without what writes change, and where exports are."""
        nodes = self.daemon.command('query-named-block-nodes', flat=True)
        for node in nodes:
            node['image'] = {key: value for key, value in node['image'].items()
                             if key not in ('actual-size', 'virtual-size')}
            for bitmap in node.get('dirty-bitmaps', []):
                del bitmap['count']
        return nodes, self.daemon.command('query-block-exports')


def sync(node, overlay, **more):
    """The action that snapshots a node into a new file."""
    return 'blockdev-snapshot-sync', {'node-name': node, 'snapshot-file': test_path(f'{overlay}.qcow2'),
                                      'snapshot-node-name': overlay, **more}


ABORT = ('abort', {})
