"""Writers that remember what they wrote, for tests of copies that must show one moment.

    writers = Writers(socket, 'disk', size)     # threads, each with a connection and a part of the disk of its own
    with writers:
        before = writers.position()
        ...                                     # something takes a copy while they go on
        after = writers.position()
    writers.check_moment(self, image, before, after)

A copy is right when it holds, for each writer, what that one had written at some moment between the two positions:
the first so many of its writes, and none of the later ones.
"""

import random
import struct
import threading
import time

from nbdclient import NbdClient
from patience import limit

BLOCK = 4096
MAX_BLOCKS = 24


def block_of(tag):
    """Content of a block written by the write with this number; 0: zeroes."""
    return struct.pack('>Q', tag) * (BLOCK // 8) if tag else bytes(BLOCK)


class Writer(threading.Thread):
    """One connection and one part of the disk: blocks first to last - 1."""

    def __init__(self, socket, export, seed, first, last, pause=0.0):
        super().__init__(daemon=True)
        self.client = NbdClient(socket, export, timeout=60)
        self.random = random.Random(seed)
        self.first, self.last = first, last
        self.tag_base = seed << 32
        self.pause = pause
        self.history = []  # (first block, blocks, tag), in the order they were sent
        self.done = 0
        self.error = None
        self.stopping = False

    def run(self):
        try:
            while not self.stopping:
                self.write()
                if self.pause:
                    time.sleep(self.random.random() * self.pause)
            self.client.disconnect()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def write(self):
        count = self.random.randrange(1, MAX_BLOCKS)
        at = self.random.randrange(self.first, self.last - count)
        is_zero = self.random.random() < 0.1
        tag = 0 if is_zero else self.tag_base + len(self.history) + 1
        self.history.append((at, count, tag))
        if is_zero:
            self.client.write_zeroes(at * BLOCK, count * BLOCK)
        else:
            self.client.write(at * BLOCK, block_of(tag) * count)
        self.done += 1

    def state(self, initial, writes):
        """Tags of the blocks after so many writes."""
        tags = dict(initial)
        for at, count, tag in self.history[:writes]:
            for block in range(at, at + count):
                tags[block] = tag
        return tags


class Writers:
    """`initial`: tag of every block before anything is written."""

    def __init__(self, socket, export, size, count=3, initial=0, pause=0.0):
        part = size // BLOCK // count
        self.initial = initial
        self.writers = [Writer(socket, export, 1 + at, at * part, (at + 1) * part, pause) for at in range(count)]

    def __enter__(self):
        for writer in self.writers:
            writer.start()
        self.wait(20)
        return self

    def __exit__(self, *_):
        for writer in self.writers:
            writer.stopping = True
        for writer in self.writers:
            writer.join(limit(60))

    def wait(self, more):
        """Waits until each has made so many more writes."""
        goals = [(writer, writer.done + more) for writer in self.writers]
        deadline = time.monotonic() + limit(60)
        for writer, goal in goals:
            while writer.done < goal and writer.error is None and time.monotonic() < deadline:
                time.sleep(0.002)

    def position(self):
        """For each writer: how many writes are done, how many have been sent."""
        return [(writer.done, len(writer.history)) for writer in self.writers]

    def check(self, case):
        """No writer has met an error, and all have written."""
        for writer in self.writers:
            case.assertIsNone(writer.error)
            case.assertGreater(writer.done, 0)

    def check_moment(self, case, image, before, after):
        """`image`: the copy, from byte 0. Fails unless it shows one moment between the positions."""
        for writer, (low, _), (_, high) in zip(self.writers, before, after):
            blocks = range(writer.first, writer.last)
            copied = {block: tag_of(image[block * BLOCK:(block + 1) * BLOCK]) for block in blocks}
            expected = writer.state({block: self.initial for block in blocks}, low)
            for at in range(low, high + 1):
                if expected == copied:
                    break
                if at < high:
                    first, count, tag = writer.history[at]
                    expected.update({block: tag for block in range(first, first + count)})
            else:
                wrong = [block for block in blocks if copied[block] != expected[block]]
                case.fail(f'the copy shows no moment between write {low} and {high} of writer {writer.first}: '
                          f'{len(wrong)} blocks, first {wrong[:1]}')


def tag_of(block):
    """The number of the write that a block comes from; None: of none, or of several."""
    tag = struct.unpack('>Q', block[:8])[0]
    return tag if block == block_of(tag) else None


def read_all(socket, export, size, piece=1024 * 1024):
    """The content of an export."""
    client = NbdClient(socket, export, timeout=60)
    data = b''.join(client.read(at, min(piece, size - at)) for at in range(0, size, piece))
    client.disconnect()
    return data
