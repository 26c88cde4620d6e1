"""A small NBD client: fixed newstyle, simple and structured replies, one request at a time.

Written from the NBD protocol document. It checks what the server says and raises NbdError when it breaks the rules.
"""

import socket
import struct
from patience import limit

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPT_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 8, 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERROR = 1 << 31
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = range(8)
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8, 16

CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_BLOCK_STATUS = 0, 1, 2, 5
CHUNK_ERROR = 1 << 15
CHUNK_DONE = 1

ERRORS = {1: 'EPERM', 5: 'EIO', 12: 'ENOMEM', 22: 'EINVAL', 28: 'ENOSPC', 75: 'EOVERFLOW', 95: 'ENOTSUP',
          108: 'ESHUTDOWN'}
OPTION_ERRORS = {1: 'UNSUP', 2: 'POLICY', 3: 'INVALID', 4: 'PLATFORM', 5: 'TLS_REQD', 6: 'UNKNOWN', 7: 'SHUTDOWN',
                 8: 'BLOCK_SIZE_REQD', 9: 'TOO_BIG'}


class NbdError(Exception):
    """The server answered with an error, or broke the protocol."""


class NbdConnection:
    """The wire, before and during option haggling."""

    def __init__(self, path, timeout=10):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(limit(timeout))
        self.socket.connect(path)
        magic, version, self.server_flags = struct.unpack('>QQH', self.receive(18))
        if magic != NBDMAGIC or version != IHAVEOPT:
            raise NbdError('not a newstyle NBD server')

    def close(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, count):
        """Exactly `count` bytes; NbdError when the server closes first."""
        parts = []
        while count > 0:
            try:
                data = self.socket.recv(min(count, 1 << 20))
            except ConnectionResetError:
                data = b''
            if not data:
                raise NbdError('connection closed by the server')
            parts.append(data)
            count -= len(data)
        return b''.join(parts)

    def closed(self):
        """Whether the server closes the connection now (waits up to the timeout)."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except socket.timeout:
            return False

    def send_flags(self, flags=3):
        """Client flags: fixed newstyle, no zeroes."""
        self.send(struct.pack('>I', flags))

    def send_option(self, option, data=b''):
        self.send(struct.pack('>QII', IHAVEOPT, option, len(data)) + data)

    def option_reply(self):
        """One reply to an option: (option, type, data)."""
        magic, option, kind, length = struct.unpack('>QIII', self.receive(20))
        if magic != OPT_REPLY_MAGIC:
            raise NbdError('bad magic in an option reply')
        return option, kind, self.receive(length)

    def option(self, option, data=b''):
        """Sends an option and collects its replies up to ACK or an error: [(type, data)]."""
        self.send_option(option, data)
        replies = []
        while True:
            got, kind, payload = self.option_reply()
            if got != option:
                raise NbdError('reply to another option')
            replies.append((kind, payload))
            if kind == REP_ACK or kind & REP_ERROR:
                return replies


def option_error(kind):
    """The name of an option reply that is an error."""
    return OPTION_ERRORS.get(kind & ~REP_ERROR, hex(kind))


class NbdClient(NbdConnection):
    """A client of one export, in transmission phase. Errors of requests are raised as NbdError('EIO') and so on."""

    def __init__(self, path, export='', structured=True, contexts=(), timeout=10):
        super().__init__(path, timeout)
        self.send_flags()
        self.structured = structured
        self.contexts = {}
        self.cookie = 0
        self.size = self.flags = self.block_size = None
        self.description = ''
        if structured and self.option(OPT_STRUCTURED_REPLY)[-1][0] != REP_ACK:
            raise NbdError('no structured replies')
        name = export.encode()
        if contexts:
            self.set_meta_contexts(name, contexts)
        self.go(name)

    def set_meta_contexts(self, name, contexts):
        queries = b''.join(struct.pack('>I', len(query)) + query for query in (text.encode() for text in contexts))
        data = struct.pack('>I', len(name)) + name + struct.pack('>I', len(contexts)) + queries
        for kind, payload in self.option(OPT_SET_META_CONTEXT, data):
            if kind == REP_META_CONTEXT:
                self.contexts[struct.unpack('>I', payload[:4])[0]] = payload[4:].decode()
            elif kind & REP_ERROR:
                raise NbdError(option_error(kind))

    def go(self, name):
        wanted = struct.pack('>HHHH', 3, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE)
        for kind, payload in self.option(OPT_GO, struct.pack('>I', len(name)) + name + wanted):
            if kind & REP_ERROR:
                raise NbdError(option_error(kind))
            if kind != REP_INFO:
                continue
            (info,) = struct.unpack('>H', payload[:2])
            if info == INFO_EXPORT:
                self.size, self.flags = struct.unpack('>QH', payload[2:])
            elif info == INFO_BLOCK_SIZE:
                self.block_size = struct.unpack('>III', payload[2:])
            elif info == INFO_DESCRIPTION:
                self.description = payload[2:].decode()

    # ---- requests

    def send_request(self, command, offset=0, length=0, data=b'', flags=0):
        """Sends a request and returns its cookie."""
        self.cookie += 1
        self.send(struct.pack('>IHHQQI', REQUEST_MAGIC, flags, command, self.cookie, offset, length) + data)
        return self.cookie

    def request(self, command, offset=0, length=0, data=b'', flags=0):
        """Sends a request and waits for its answer: bytes of a read, extents of a block status, else b''."""
        self.send_request(command, offset, length, data, flags)
        return self.reply(command, offset, length)

    def reply(self, command, offset, length):
        """Reads the whole answer to the request that was sent last."""
        (magic,) = struct.unpack('>I', self.receive(4))
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack('>IQ', self.receive(12))
            if cookie != self.cookie:
                raise NbdError('reply to another request')
            if error:
                raise NbdError(ERRORS.get(error, str(error)))
            if command == CMD_READ:
                if self.structured:
                    raise NbdError('simple reply to a read')
                return self.receive(length)
            return b''
        return self.structured_reply(magic, offset, length if command == CMD_READ else 0)

    def structured_reply(self, magic, offset, length):
        data = bytearray(length)
        filled = 0
        extents = {}
        error = None
        while True:
            if magic != STRUCTURED_REPLY_MAGIC:
                raise NbdError('bad magic in a reply')
            flags, kind, cookie, size = struct.unpack('>HHQI', self.receive(16))
            payload = self.receive(size)
            if cookie != self.cookie:
                raise NbdError('reply to another request')
            if kind == CHUNK_DATA:
                (at,) = struct.unpack('>Q', payload[:8])
                data[at - offset:at - offset + size - 8] = payload[8:]
                filled += size - 8
            elif kind == CHUNK_HOLE:
                filled += struct.unpack('>QI', payload)[1]
            elif kind == CHUNK_BLOCK_STATUS:
                (context,) = struct.unpack('>I', payload[:4])
                extents[self.contexts[context]] = list(struct.iter_unpack('>II', payload[4:]))
            elif kind & CHUNK_ERROR:
                (code,) = struct.unpack('>I', payload[:4])
                error = ERRORS.get(code, str(code))
            elif kind != CHUNK_NONE:
                raise NbdError(f'unknown chunk {kind}')
            if flags & CHUNK_DONE:
                break
            (magic,) = struct.unpack('>I', self.receive(4))
        if error:
            raise NbdError(error)
        if filled and (filled != length or len(data) != length):
            raise NbdError('chunks do not cover the read')
        return extents or bytes(data if filled else b'')

    def read(self, offset, length, flags=0):
        return self.request(CMD_READ, offset, length, flags=flags)

    def write(self, offset, data, flags=0):
        self.request(CMD_WRITE, offset, len(data), data, flags)

    def write_zeroes(self, offset, length, flags=0):
        self.request(CMD_WRITE_ZEROES, offset, length, flags=flags)

    def trim(self, offset, length, flags=0):
        self.request(CMD_TRIM, offset, length, flags=flags)

    def cache(self, offset, length):
        self.request(CMD_CACHE, offset, length)

    def flush(self):
        self.request(CMD_FLUSH)

    def block_status(self, offset, length, flags=0):
        """{context: [(length, status)]}"""
        return self.request(CMD_BLOCK_STATUS, offset, length, flags=flags)

    def disconnect(self):
        """Says goodbye and closes when the server has, so that it is known to have noticed."""
        self.send_request(CMD_DISC)
        self.closed()
        self.close()
