"""Disk images of macOS that are valid by what is known of the format and that nothing here makes: every kind of chunk,
several tables in and out of order, property lists in odd white space, resource forks among other resources, data away from
the start of the file. Usage: make-dmg.py FOLDER. For each NAME.dmg there is NAME.dmg.raw, what it reads as."""
import base64, bz2, lzma, os, struct, sys, zlib

FOLDER = sys.argv[1]
os.makedirs(FOLDER, exist_ok=True)
SECTOR = 512
ZERO, RAW, IGNORE, COMMENT, END = 0, 1, 2, 0x7ffffffe, 0xffffffff
ADC, ZLIB, BZIP2, LZFSE, LZMA = 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008


def pattern(sectors, seed):
    """Bytes that compress somewhat and say where they are."""
    return b''.join(struct.pack('<IIQ', seed, i // 7, i * 2654435761 & 0xff) for i in range(sectors * 32))


def pack_adc(data):
    """Literals, and both kinds of matches wherever the last bytes repeat."""
    out = bytearray()
    at = 0
    while at < len(data):
        best, back = 0, 0
        for distance in (16, 32, 1, 2048):
            if distance > at:
                continue
            length = 0
            while length < 67 and at + length < len(data) and data[at + length] == data[at + length - distance]:
                length += 1
            if length > best:
                best, back = length, distance
        if best >= 4 and (best > 18 or back > 1024):
            out += struct.pack('>BH', 0x40 | best - 4, back - 1)
        elif best >= 3 and back <= 1024:
            best = min(best, 18)
            out += bytes([best - 3 << 2 | back - 1 >> 8, back - 1 & 255])
        else:
            best = min(len(data) - at, 13)
            out += bytes([0x80 | best - 1]) + data[at:at + best]
        at += best
    return bytes(out)


def pack_lzfse(data):
    """An uncompressed block, one of LZVN that is all literals, and the end."""
    half = len(data) // 2 // 16 * 16
    out = b'bvx-' + struct.pack('<I', half) + data[:half]
    rest, ops = data[half:], b''
    while rest:
        part, rest = rest[:271], rest[271:]
        ops += (bytes([0xe0 | len(part)]) if len(part) < 16 else bytes([0xe0, len(part) - 16])) + part
    ops += b'\x06' + bytes(7)
    return out + b'bvxn' + struct.pack('<II', len(data) - half, len(ops)) + ops + b'bvx$'


PACK = {RAW: lambda d: d, ZLIB: zlib.compress, BZIP2: bz2.compress, LZMA: lambda d: lzma.compress(d, lzma.FORMAT_XZ), ADC: pack_adc, LZFSE: pack_lzfse}


def table(first, sectors, chunks, data_offset=0, end=True, checksum=True):
    """A block table: chunks of (type, first sector in the table, sectors, offset, length)."""
    entries = list(chunks) + ([(END, sectors, 0, 0, 0)] if end else [])
    head = struct.pack('>IIQQQII24x', 0x6d697368, 1, first, sectors, data_offset, 2056, 0)
    head += struct.pack('>II', 2, 32) + bytes(128) if checksum else bytes(136)
    head += struct.pack('>I', len(entries))
    return head + b''.join(struct.pack('>IIQQQQ', kind, 0, start, count, host, length) for kind, start, count, host, length in entries)


def plist(tables, style='apple'):
    text = base64.b64encode
    if style == 'apple':
        wrap = lambda b: ''.join(f'\t\t\t\t{line}\n' for line in [text(b).decode()[i:i + 52] for i in range(0, len(text(b)), 52)])
        items = ''.join(f'\t\t\t<dict>\n\t\t\t\t<key>Attributes</key>\n\t\t\t\t<string>0x0050</string>\n\t\t\t\t<key>CFName</key>\n\t\t\t\t<string>part {i} (Apple_HFS : {i})</string>\n\t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n{wrap(b)}\t\t\t\t</data>\n\t\t\t\t<key>ID</key>\n\t\t\t\t<string>{i}</string>\n\t\t\t</dict>\n' for i, b in enumerate(tables))
        other = '\t\t<key>plst</key>\n\t\t<array>\n\t\t\t<dict>\n\t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n\t\t\t\tAAAAAAAAAAAAAAAA\n\t\t\t\t</data>\n\t\t\t</dict>\n\t\t</array>\n'
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n<plist version="1.0">\n<dict>\n\t<key>resource-fork</key>\n\t<dict>\n\t\t<key>blkx</key>\n\t\t<array>\n{items}\t\t</array>\n{other}\t</dict>\n</dict>\n</plist>\n'.encode()
    if style == 'dense':
        items = ''.join(f'<dict><key>Data</key><data>{text(b).decode()}</data></dict>' for b in tables)
        return f'<plist><dict><key>resource-fork</key><dict><key>blkx</key><array>{items}</array></dict></dict></plist>'.encode()
    if style == 'after':
        items = ''.join(f'<dict><key>Data</key><data>{text(b).decode()}</data></dict>' for b in tables)
        junk = f'<key>cSum</key><array><dict><key>Data</key><data>{text(tables[0][:100]).decode()}</data></dict></array><key>nsiz</key><array/>'
        return f'<plist><dict><key>resource-fork</key><dict>{junk}<key>blkx</key><array>{items}</array>{junk}</dict></dict></plist>'.encode()
    # Every place where XML allows white space, comments, Windows' line ends, a byte order mark.
    items = ''.join('<dict \r\n>\r\n<key\t> Data\r\n</key >\r\n<!-- <data>AAAA</data> -->\r\n<data  >' + ' \t\r\n'.join(text(b).decode()[i:i + 7] for i in range(0, len(text(b)), 7)) + '\r\n</data\n>\r\n</dict>' for b in tables)
    return b'\xef\xbb\xbf' + f'<?xml version="1.0"?>\r\n<plist>\r\n<dict><key>\r\n resource-fork </key ><dict>\r\n<!-- <key>blkx</key> --><key >\r\n\t blkx \r\n</key\t>\r\n<array \r\n>{items}</array\r\n>\r\n</dict></dict></plist>'.encode()


def fork(resources):
    """A resource fork: [(type, [data...])], the layout of Inside Macintosh."""
    data, refs = b'', {}
    for kind, items in resources:
        for item in items:
            refs.setdefault(kind, []).append(len(data))
            data += struct.pack('>I', len(item)) + item
    types = b''
    lists = b''
    lists_at = 2 + 8 * len(resources)
    names = b''
    for kind, items in resources:
        types += kind + struct.pack('>HH', len(items) - 1, lists_at + len(lists))
        for number, at in enumerate(refs[kind]):
            name = f'{kind.decode()} {number}'.encode()
            lists += struct.pack('>hHII', number - 1, len(names), at | 0x50 << 24, 0)
            names += bytes([len(name)]) + name
    types = struct.pack('>h', len(resources) - 1) + types
    head = struct.pack('>IIII', 256, 256 + len(data), len(data), 28 + len(types) + len(lists) + len(names))
    map_ = head + bytes(8) + struct.pack('>HH', 28, 28 + len(types) + len(lists)) + types + lists + names
    return head + bytes(240) + data + map_


def koly(data_offset, data_bytes, fork_at, fork_bytes, list_at, list_bytes, sectors):
    head = struct.pack('>4sIIIQQQQQIIIIII', b'koly', 4, 512, 1, 0, data_offset, data_bytes, fork_at, fork_bytes, 1, 1, 1, 2, 3, 4)
    head += struct.pack('>II', 2, 32) + bytes(128)
    head += struct.pack('>QQ', list_at, list_bytes) + bytes(120)
    head += struct.pack('>II', 2, 32) + bytes(128)
    head += struct.pack('>IQ', 1, sectors)
    return head + bytes(512 - len(head))


def make(name, tables, style='apple', resources=None, before=b'', slack=0, in_front=False, list_too=True, table_offset=False, order=None, shuffle=False, end=True, tail=b'', short_list=False):
    """tables: [(first sector, [(type, data or sectors)])]; `before`: bytes before the data, which offsets do not count."""
    front = bytes(512) if in_front else b''
    out, packed, raw = bytearray(front + before), [], bytearray()
    data_at = len(out)
    for first, chunks in tables:
        start, entries, base = 0, [], len(out) - data_at if table_offset else 0
        for kind, content in chunks:
            if kind == COMMENT:
                entries.append((COMMENT, 0, 0, 0, 0))
                continue
            sectors = content if isinstance(content, int) else len(content) // SECTOR
            plain = bytes(sectors * SECTOR) if isinstance(content, int) else content
            stored = b'' if isinstance(content, int) else PACK[kind](content)
            stored += b'\xa5' * slack if stored and kind != RAW else b''
            entries.append((kind, start, sectors, len(out) - data_at - base, len(stored)))
            out += stored
            at = (first + start) * SECTOR
            raw += bytes(max(0, at + len(plain) - len(raw)))
            raw[at:at + len(plain)] = plain
            start += sectors
        if shuffle:
            entries = entries[::-1]
        packed.append(table(first, start, entries, base, end))
    if order:
        packed = [packed[i] for i in order]
    data_bytes = len(out) - data_at
    fork_at = fork_bytes = list_at = list_bytes = 0
    if resources is not None:
        bytes_ = fork([(kind, packed if items is None else items) for kind, items in resources])
        fork_at, fork_bytes = len(out), len(bytes_)
        out += bytes_
    if list_too:
        bytes_ = plist(packed, style)
        list_at, list_bytes = len(out), len(bytes_)
        out += bytes_
    trailer = koly(data_at, data_bytes, fork_at, fork_bytes, list_at, list_bytes, len(raw) // SECTOR)
    if in_front:
        out[:512] = trailer
    else:
        out += trailer
    out += tail
    for path, content in ((f'{name}.dmg', out), (f'{name}.dmg.raw', raw)):
        with open(os.path.join(FOLDER, path), 'wb') as file:
            file.write(bytes(content))


KINDS = {'raw': RAW, 'zlib': ZLIB, 'bzip2': BZIP2, 'lzma': LZMA, 'adc': ADC, 'lzfse': LZFSE}
for name, kind in KINDS.items():
    make(f'kind-{name}', [(0, [(kind, pattern(512, 1)), (ZERO, 300), (kind, pattern(512, 2)), (IGNORE, 17), (kind, pattern(1, 3))])])
PARTS = [(0, [(ZLIB, pattern(1, 4))]), (1, [(ZLIB, pattern(33, 5)), (IGNORE, 6)]), (40, [(COMMENT, 0), (ZLIB, pattern(512, 6)), (ZERO, 511), (COMMENT, 0), (RAW, pattern(9, 7))])]
make('tables', PARTS)
make('tables-out-of-order', PARTS, order=[2, 0, 1])
make('tables-own-offset', PARTS, table_offset=True)
make('chunks-out-of-order', PARTS, shuffle=True)
make('no-end', PARTS, end=False)
make('behind-something', PARTS, before=b'#!/bin/sh\n' + b'x' * 4093)
make('trailer-in-front', PARTS, in_front=True)
make('list-dense', PARTS, style='dense')
make('list-after-others', PARTS, style='after')
make('list-odd', PARTS, style='odd')
make('fork', PARTS, resources=[(b'blkx', None)], list_too=False)
make('fork-others', PARTS, resources=[(b'plst', [b'x' * 1000, b'']), (b'blkx', None), (b'STR#', [b'\0\1\5hello'])], list_too=False)
make('fork-without', PARTS, resources=[(b'LPic', [b'license'] * 3), (b'TEXT', [b'terms'])])
make('fork-and-list', PARTS, resources=[(b'blkx', None)])
make('slack', [(0, [(ZLIB, pattern(100, 8)), (BZIP2, pattern(64, 9)), (LZMA, pattern(100, 10))])], slack=37)
make('large-chunks', [(0, [(ZLIB, pattern(20000, 11)), (ZERO, 100000), (RAW, pattern(8000, 12))])])
make('long-zero', [(0, [(ZLIB, pattern(8, 13)), (ZERO, 1 << 16), (ZLIB, pattern(8, 14))])])
make('all-kinds', [(0, [(kind, pattern(40 + i, 20 + i)) for i, kind in enumerate(KINDS.values())])])
make('padded-file', PARTS, tail=bytes(1300))
