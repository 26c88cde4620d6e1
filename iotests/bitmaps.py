"""What the scripts on dirty bitmaps share: what the daemon says of a bitmap, its bits, and a model of them.

    with Scribbler(socket, 'disk') as scribbler:    # a process that writes, zeroes and discards ranges of any length
        ...
    scribbler.check(self)
    scribbler.touched(4096)                         # numbers of the blocks of 4 KiB that it has changed

Started as a program it is the scribbling process itself: SOCKET EXPORT SEED FIRST END, in bytes.
"""

import hashlib
import json
import random
import select
import sys

from iotests import QmpError
from load import ClientProcess
from nbdclient import NbdClient, NbdError
from pointintime import PointInTimeTestCase

COPY = 'copy-for-a-look'
# Bytes that a client asks the block status of.
MOST_AT_ONCE = 2 ** 32 - 65536


def blocks_of(offset, length, granularity):
    """Numbers of the blocks that a range touches."""
    return set(range(offset // granularity, (offset + length - 1) // granularity + 1)) if length else set()


def blocks_of_all(ranges, granularity):
    """The same of many ranges (offset, length)."""
    return set().union(*[blocks_of(offset, length, granularity) for offset, length in ranges])


def coarser(blocks, granularity, other):
    """Marked blocks of one granularity as blocks of another one."""
    return blocks_of_all([(block * granularity, granularity) for block in blocks], other)


def sha256_of(blocks, size, granularity):
    """The checksum of a bitmap: of its bits in little-endian words of 64, however short the disk is."""
    count = -(-size // granularity)
    words = bytearray(max(1, -(-count // 64)) * 8)
    for block in blocks:
        words[block // 8] |= 1 << block % 8
    return hashlib.sha256(words).hexdigest()


def dirty_ranges(extents):
    """Extents (length, flags) of a client's context as dirty ranges (offset, length)."""
    found, at = [], 0
    for length, flags in extents:
        if flags:
            found.append((at, length))
        at += length
    return found


class BitmapTestCase(PointInTimeTestCase):
    """A daemon with an NBD server, disks on it, and bitmaps of the disks."""

    def add_bitmap(self, node, name, **more):
        self.assert_ok('block-dirty-bitmap-add', node=node, name=name, **more)

    def on(self, verb, node, name):
        self.assert_ok(f'block-dirty-bitmap-{verb}', node=node, name=name)

    def node_info(self, node):
        nodes = self.daemon.command('query-named-block-nodes', flat=True)
        return next(found for found in nodes if found['node-name'] == node)

    def infos(self, node):
        """{name: what the daemon says} of all bitmaps of a node."""
        return {bitmap.get('name'): bitmap for bitmap in self.node_info(node).get('dirty-bitmaps', [])}

    def flags(self, node, name):
        """What is true of a bitmap, in words."""
        info = self.infos(node)[name]
        return ' '.join(word for word in ('recording', 'busy', 'persistent', 'inconsistent') if info.get(word))

    def sha256(self, node, name):
        return self.assert_ok('x-debug-block-dirty-bitmap-sha256', node=node, name=name)['sha256']

    def marked(self, node, name):
        """Numbers of the marked blocks. The bitmap may be recording, but nobody may use it."""
        granularity = self.infos(node)[name]['granularity']
        self.add_bitmap(node, COPY, granularity=granularity, disabled=True)
        self.assert_ok('block-dirty-bitmap-merge', node=node, target=COPY, bitmaps=[name])
        self.export(node, 'bits', writable=False, bitmaps=[COPY])
        found = blocks_of_all(self.exported_ranges('bits', COPY), granularity)
        self.unexport('bits')
        self.on('remove', node, COPY)
        return found

    def exported_ranges(self, export, bitmap):
        """The dirty ranges that a client of the export sees."""
        context = f'qemu:dirty-bitmap:{bitmap}'
        client = NbdClient(self.socket, export, contexts=[context], timeout=60)
        at, ranges = 0, []
        while at < client.size:
            extents = client.block_status(at, min(client.size - at, MOST_AT_ONCE))[context]
            ranges += [(at + offset, length) for offset, length in dirty_ranges(extents)]
            at += sum(length for length, _ in extents)
        client.disconnect()
        return ranges

    def write(self, export, *ranges, byte=b'\x77'):
        """Writes ranges (offset, length) through an export."""
        client = NbdClient(self.socket, export, timeout=60)
        for offset, length in ranges:
            client.write(offset, byte * length)
        client.disconnect()


class Scribbler(ClientProcess):
    """A process under way that changes ranges of an export, each piece of at most 300 KB, and remembers which."""

    def __init__(self, socket, export, seed=1, first=0, end=1024 * 1024):
        super().__init__(__file__, socket, export, seed, first, end)

    def check(self, case):
        result = self.stop()
        case.assertEqual(result['errors'], [])
        case.assertGreater(len(result['ranges']), 0)

    def touched(self, granularity):
        return blocks_of_all(self.stop()['ranges'], granularity)


def scribble(path, export, seed, first, end):
    """The process: at least 12 requests, then more until stdin is closed; few enough to leave gaps."""
    client = NbdClient(path, export, timeout=60)
    rng = random.Random(seed)
    ranges, errors = [], []
    while len(ranges) < 12 or not select.select([sys.stdin], [], [], 0.02)[0]:
        length = min(rng.choice((1, 511, 512, 4096, 5000, 65536, 300000)), end - first)
        offset = rng.randrange(first, end - length + 1)
        kind = rng.random()
        try:
            if kind < 0.6:
                client.write(offset, bytes([rng.randrange(1, 256)]) * length)
            elif kind < 0.8:
                client.write_zeroes(offset, length)
            else:
                # Discards are advice, and those of parts of a block come to nothing: whole blocks only.
                offset, length = offset // 65536 * 65536, 65536
                client.trim(offset, length)
        except (NbdError, OSError) as error:
            errors.append(f'request at {offset}: {error}')
            break
        ranges.append((offset, length))
        if len(ranges) == 1:
            print('running', flush=True)
    if not errors:
        client.disconnect()
    print(json.dumps({'ranges': ranges, 'errors': errors}))


def refusal(daemon, command, **arguments):
    """The error text of a command that must fail; '' when it does not."""
    try:
        daemon.command(command, **arguments)
    except QmpError as error:
        return str(error)
    return ''


if __name__ == '__main__':
    scribble(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
