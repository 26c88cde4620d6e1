"""A vhost-user front end with one queue and one request at a time: enough to be a guest of a vhost-user-blk export."""

import mmap
import os
import select
import socket
import struct

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 12, 13, 15, 16
SET_VRING_ENABLE, GET_CONFIG = 18, 24
READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
SIZE, MEMORY, USER, DATA = 32, 1 << 20, 0x100000000, 0x10000
TABLE, AVAILABLE, USED = 0, 0x1000, 0x2000


class VhostUserClient:
    """Connected and set up when it is made."""

    def __init__(self, path, features=0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.file = os.memfd_create('guest')
        os.ftruncate(self.file, MEMORY)
        self.memory = mmap.mmap(self.file, MEMORY)
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.index = 0
        self.features = struct.unpack('<Q', self.ask(GET_FEATURES))[0]
        self.protocol_features = struct.unpack('<Q', self.ask(GET_PROTOCOL_FEATURES))[0]
        self.send(SET_PROTOCOL_FEATURES, struct.pack('<Q', self.protocol_features & (1 << 0 | 1 << 9)))
        self.send(SET_OWNER)
        self.send(SET_FEATURES, struct.pack('<Q', self.features & (1 << 30 | 1 << 32 | features)))
        table = struct.pack('<IIQQQQ', 1, 0, 0, MEMORY, USER, 0)
        self.send(SET_MEM_TABLE, table, [self.file])
        self.start(0)

    def start(self, base):
        """Gives the back end the queue."""
        self.send(SET_VRING_NUM, struct.pack('<II', 0, SIZE))
        self.send(SET_VRING_BASE, struct.pack('<II', 0, base))
        self.send(SET_VRING_ADDR, struct.pack('<IIQQQQ', 0, 0, USER + TABLE, USER + USED, USER + AVAILABLE, 0))
        self.send(SET_VRING_CALL, struct.pack('<Q', 0), [self.call])
        self.send(SET_VRING_KICK, struct.pack('<Q', 0), [self.kick])
        self.send(SET_VRING_ENABLE, struct.pack('<II', 0, 1))

    def stop(self):
        """Takes the queue back; returns how far the back end has come."""
        return struct.unpack('<II', self.ask(GET_VRING_BASE, struct.pack('<II', 0, 0)))[1]

    def send(self, request, payload=b'', fds=()):
        socket.send_fds(self.socket, [struct.pack('<III', request, 1, len(payload)) + payload], list(fds))

    def ask(self, request, payload=b''):
        self.send(request, payload)
        head = self.socket.recv(12, socket.MSG_WAITALL)
        if len(head) < 12:
            raise EOFError('the back end has left')
        length = struct.unpack('<III', head)[2]
        return self.socket.recv(length, socket.MSG_WAITALL) if length else b''

    def config(self):
        """The configuration space of 60 bytes."""
        return self.ask(GET_CONFIG, struct.pack('<III', 0, 60, 0) + bytes(60))[12:]

    def request(self, kind, sector=0, data=b'', read=0, split=None):
        """Carries out a request; returns its status and what was read. `split`: bytes of each part of the data."""
        self.memory[DATA:DATA + 16] = struct.pack('<IIQ', kind, 0, sector)
        place, length = DATA + 4096, read or len(data)
        self.memory[place:place + len(data)] = data
        parts = [(DATA, 16, 0)]
        for at in range(0, length, split or max(length, 1)):
            parts.append((place + at, min(split or length, length - at), 2 if read else 0))
        parts.append((DATA + 64, 1, 2))
        self.memory[DATA + 64] = 0xff
        for i, (address, count, flags) in enumerate(parts):
            link = i + 1 < len(parts)
            self.memory[i * 16:i * 16 + 16] = struct.pack('<QIHH', address, count, flags | link, i + 1 if link else 0)
        struct.pack_into('<H', self.memory, AVAILABLE + 4 + 2 * (self.index % SIZE), 0)
        # The used index to hear of, where event indices are in use.
        struct.pack_into('<H', self.memory, AVAILABLE + 4 + 2 * SIZE, self.index)
        self.index = (self.index + 1) % 65536
        struct.pack_into('<H', self.memory, AVAILABLE + 2, self.index)
        os.eventfd_write(self.kick, 1)
        while struct.unpack_from('<H', self.memory, USED + 2)[0] != self.index:
            if not select.select([self.call], [], [], 20)[0]:
                raise TimeoutError('the request does not come back')
            os.eventfd_read(self.call)
        _head, written = struct.unpack_from('<II', self.memory, USED + 4 + 8 * ((self.index - 1) % SIZE))
        assert written == (read if self.memory[DATA + 64] == 0 else 0) + 1, written
        return self.memory[DATA + 64], bytes(self.memory[place:place + read])

    def close(self):
        self.socket.close()
        self.memory.close()
        for fd in (self.file, self.kick, self.call):
            os.close(fd)
