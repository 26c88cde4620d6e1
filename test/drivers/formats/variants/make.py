"""Images that are valid by the specifications and that nothing here makes: odd grains, blocks and clusters, gaps, several extents,
parents under every kind of name. Usage: make.py FOLDER. For each NAME.FORMAT there is NAME.FORMAT.raw, what it reads as."""
import os, struct, sys, uuid, zlib

FOLDER = sys.argv[1]
os.makedirs(FOLDER, exist_ok=True)
KIB, MIB = 1024, 1 << 20


def put(name, content):
    global last
    # NAME.FORMAT, and then what it reads as.
    if name.endswith('.raw'):
        name = name[:-4] + '.' + last + '.raw'
    else:
        last = name.rsplit('.', 1)[1]
    path = os.path.join(FOLDER, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(bytes(content))


def pattern(length, seed):
    """Bytes that say where they are."""
    return b''.join(struct.pack('<IIQ', seed, i, i * 2654435761 & 0xffffffff) for i in range((length + 15) // 16))[:length]


def place(content, at, data):
    if len(content) < at + len(data):
        content += bytes(at + len(data) - len(content))
    content[at:at + len(data)] = data


# ---- vmdk --------------------------------------------------------------------------------------------------------

def hosted(capacity, grain, entries, grains, version=1, flags=1, redundant=False, descriptor=b'', compressed=False, gap=0, tables=None):
    """A sparse extent. grains: index -> bytes, None for zeroed."""
    needed = -(-capacity // (grain * entries))
    desc_at, desc_sectors = (1, 20) if descriptor else (0, 0)
    at = 1 + desc_sectors
    directories = 2 if redundant else 1
    gd_sectors = -(-needed * 4 // 512)
    gt_sectors = -(-entries * 4 // 512)
    image = bytearray()
    gds = []
    for _ in range(directories):
        gd = at
        at += gd_sectors
        gts = []
        for i in range(needed):
            if tables is not None and i not in tables:
                gts.append(0)
                continue
            gts.append(at)
            at += gt_sectors
        gds.append((gd, gts))
        place(image, gd * 512, b''.join(struct.pack('<I', each) for each in gts))
    overhead = -(-at // grain) * grain + gap
    at = overhead
    for index, data in grains.items():
        sector = 1 if data is None else at
        if data is not None:
            if compressed:
                packed = zlib.compress(data)
                data = struct.pack('<QI', index * grain, len(packed)) + packed
                data += bytes(-len(data) % 512)
            place(image, at * 512, data)
            at += len(data) // 512 if compressed else grain
        for _, gts in gds:
            place(image, gts[index // entries] * 512 + index % entries * 4, struct.pack('<I', sector))
    if redundant:
        flags |= 2
    header = struct.pack('<4sIIQQQQIQQQB4sH', b'KDMV', version, flags, capacity, grain, desc_at, desc_sectors, entries,
                         gds[1][0] if redundant else 0, gds[0][0], overhead, 0, b'\n \r\n', 1 if compressed else 0)
    place(image, 0, header)
    place(image, desc_at * 512, descriptor) if descriptor else None
    image += bytes(-len(image) % 512)
    return image


def descriptor(kind, extents, parent=None, cid='12345678', eol='\n', hint=None):
    lines = ['# Disk DescriptorFile', 'version=1', 'encoding="UTF-8"', 'CID=' + cid, 'parentCID=' + (parent or 'ffffffff'),
             'isNativeSnapshot="no"', 'createType="%s"' % kind]
    if hint:
        lines.append('parentFileNameHint="%s"' % hint)
    lines += ['', '# Extent description'] + extents + ['', '# The Disk Data Base', '#DDB', '', 'ddb.longContentID = "0"',
              'ddb.virtualHWVersion = "21"', 'ddb.geometry.cylinders = "16"', 'ddb.adapterType = "lsilogic"', '']
    return eol.join(lines).encode()


def grains_of(name, capacity, grain, entries, places, zeroed=(), **more):
    raw = bytearray(capacity * 512)
    grains = {}
    for i in places:
        data = pattern(grain * 512, i)
        grains[i] = data
        end = min(len(raw), (i + 1) * grain * 512)
        raw[i * grain * 512:end] = data[:end - i * grain * 512]
    for i in zeroed:
        grains[i] = None
    return hosted(capacity, grain, entries, grains, **more), raw


def vmdk(name, *args, **more):
    image, raw = grains_of(name, *args, descriptor=descriptor('monolithicSparse', ['RW %d SPARSE "%s.vmdk"' % (args[0], name)]), **more)
    put(name + '.vmdk', image)
    put(name + '.raw', raw)


vmdk('grain-8', 5000, 8, 512, (0, 3, 511, 512, 624))
vmdk('grain-16-few-entries', 4000, 16, 64, (0, 63, 64, 249), tables=(0, 1, 3))
vmdk('grain-2048', 9000, 2048, 512, (4, 0, 2))
vmdk('redundant', 8192, 128, 512, (0, 7, 63), redundant=True)
vmdk('zeroed', 8192, 128, 512, (1, 3), zeroed=(0, 2, 63), version=2, flags=5)
vmdk('gap', 8192, 128, 512, (5, 1), gap=77 * 128)
vmdk('version-3', 8192, 128, 512, (5, 1), version=3)
vmdk('packed', 8192, 128, 512, (5, 1, 0, 63), version=3, flags=0x30001, compressed=True)
vmdk('packed-small-grains', 1000, 16, 512, (5, 1, 62), version=3, flags=0x30001, compressed=True)

one, raw_one = grains_of('one', 2048, 128, 512, (0, 9))
two, raw_two = grains_of('two', 999, 8, 512, (3, 124))
flat = pattern(300 * 512, 99)
put('parts/first s001.vmdk', one)
put('parts/zw\u00f6lf.vmdk', two)
put('parts-flat.vmdk', bytes(7 * 512) + flat)
lines = ['RW 2048 SPARSE "parts/first s001.vmdk"', 'RW 300 FLAT "parts-flat.vmdk" 7', 'RW 40 ZERO', 'RW 999 SPARSE "parts/zw\u00f6lf.vmdk" ']
put('parts.vmdk', descriptor('custom', lines, eol='\r\n'))
put('parts.raw', raw_one + flat + bytes(40 * 512) + raw_two)
put('spaces.vmdk', descriptor('custom', ['RW   300  FLAT  "parts-flat.vmdk"   7', 'RW\t2048\tSPARSE\t"parts/first s001.vmdk"']))
put('spaces.raw', flat + raw_one)


def cowd(name, capacity, grain, places):
    entries = 4096
    needed = -(-capacity // (grain * entries))
    gd, at = 4, 4 + -(-needed * 4 // 512)
    image, raw, gts = bytearray(2048), bytearray(capacity * 512), []
    for _ in range(needed):
        gts.append(at)
        at += 32
    place(image, gd * 512, b''.join(struct.pack('<I', each) for each in gts))
    for i in places:
        data = pattern(grain * 512, i)
        place(image, at * 512, data)
        place(image, gts[i // entries] * 512 + i % entries * 4, struct.pack('<I', at))
        raw[i * grain * 512:(i + 1) * grain * 512] = data
        at += grain
    struct.pack_into('<4sIIIIII', image, 0, b'COWD', 1, 3, capacity, grain, gd, needed)
    place(image, at * 512 - 1, b'\0')
    put(name + '-delta.vmdk', image)
    put(name + '.vmdk', descriptor('vmfsSparse', ['RW %d VMFSSPARSE "%s-delta.vmdk"' % (capacity, name)]))
    put(name + '.raw', raw[:capacity * 512])


cowd('cowd-grain-1', 9000, 1, (0, 4095, 4096, 8999))
cowd('cowd-grain-128', 20480, 128, (0, 99, 159))

base, raw_base = grains_of('base', 8192, 128, 512, (0, 1, 2, 63))
for name, hint in {'chain-relative': 'base-of-chain.vmdk', 'chain-windows': 'C:\\\\Users\\\\me\\\\base-of-chain.vmdk'.replace('\\\\', '\\'),
                   'chain-absolute': '/vmfs/volumes/59/disk/base-of-chain.vmdk', 'chain-dot': '.\\base-of-chain.vmdk'}.items():
    child, raw_child = grains_of(name, 8192, 128, 512, (1, 5))
    put(name + '-s.vmdk', child)
    put(name + '.vmdk', descriptor('custom', ['RW 8192 SPARSE "%s-s.vmdk"' % name], parent='12345678', cid='0badcafe', hint=hint))
    raw = bytearray(raw_base)
    for i in (1, 5):
        raw[i * 65536:(i + 1) * 65536] = raw_child[i * 65536:(i + 1) * 65536]
    put(name + '.raw', raw)
put('base-of-chain-s.vmdk', base)
put('base-of-chain.vmdk', descriptor('twoGbMaxExtentSparse', ['RW 8192 SPARSE "base-of-chain-s.vmdk"']))
put('base-of-chain.raw', raw_base)


# ---- vpc ---------------------------------------------------------------------------------------------------------

def checked(block, at):
    block[at:at + 4] = bytes(4)
    struct.pack_into('>I', block, at, ~sum(block) & 0xffffffff)
    return block


def footer(size, kind, creator=b'vpc ', geometry=None, data=512):
    sectors = size // 512
    c, h, s = geometry or (sectors // (4 * 17), 4, 17)
    block = bytearray(512)
    struct.pack_into('>8sIIQI4sI4sQQHBBII16s', block, 0, b'conectix', 2, 0x10000, data, 0, creator, 0x10000, b'Wi2k', size, size,
                     c, h, s, kind, 0, bytes(range(16)))
    return checked(block, 64)


def dynamic(name, size, block_bytes, places, creator=b'vpc ', geometry=None, table_at=1536, header_at=512, gap=0, bitmap=0xff, kind=3):
    entries = -(-size // block_bytes)
    foot = footer(size, kind, creator, geometry, header_at)
    head = bytearray(1024)
    struct.pack_into('>8sQQIII', head, 0, b'cxsparse', 2 ** 64 - 1, table_at, 0x10000, entries, block_bytes)
    checked(head, 36)
    table = bytearray(b'\xff' * (-(-entries * 4 // 512) * 512))
    image, raw = bytearray(foot), bytearray(size)
    place(image, header_at, head)
    at = max(table_at + len(table), header_at + 1024) + gap
    at += -at % 512
    bitmap_bytes = -(-(block_bytes // 512) // 8 // 512) * 512 or 512
    for i in places:
        struct.pack_into('>I', table, i * 4, at // 512)
        data = pattern(block_bytes, i)
        place(image, at, bytes([bitmap]) * bitmap_bytes + data)
        end = min(size, (i + 1) * block_bytes)
        raw[i * block_bytes:end] = data[:end - i * block_bytes]
        at += bitmap_bytes + block_bytes
    place(image, table_at, table)
    image += foot
    put(name + '.vpc', image)
    put(name + '.raw', raw)


BIG = (65535, 16, 255)
dynamic('blocks-512k', 8 * MIB, 512 * KIB, (3, 0, 15), creator=b'win ')
dynamic('blocks-4k', MIB, 4 * KIB, (3, 0, 255), creator=b'win ')
dynamic('blocks-16m', 40 * MIB, 16 * MIB, (2, 0), creator=b'win ')
dynamic('table-behind', 8 * MIB, 2 * MIB, (3, 0), creator=b'd2v ', table_at=64 * KIB, gap=1000 * 512)
dynamic('header-behind-table', 8 * MIB, 2 * MIB, (1,), creator=b'tap\0', table_at=512, header_at=4096)
dynamic('virtualbox', 17 * 4 * 512 * 100, 2 * MIB, (0, 1), creator=b'vbox', geometry=(100, 4, 17))
dynamic('full-geometry', 5 * MIB + 512, 2 * MIB, (0, 2), creator=b'vpc ', geometry=BIG)
fixed = pattern(3 * MIB, 5)
put('fixed-hyper-v.vpc', fixed + footer(3 * MIB, 2, b'win ', data=2 ** 64 - 1))
put('fixed-hyper-v.raw', fixed)
put('fixed-511.vpc', fixed + footer(3 * MIB, 2, b'win ', data=2 ** 64 - 1)[:511])
put('fixed-511.raw', fixed)


# ---- vdi ---------------------------------------------------------------------------------------------------------

def vdi(name, size, block, places, extra=0, map_at=512, data_gap=0, zeroed=(), version=0x10001, kind=1):
    blocks = -(-size // block)
    data_at = -(-(map_at + blocks * 4) // 512) * 512 + data_gap
    head = bytearray(512)
    head[:39] = b'<<< Oracle VM VirtualBox Disk Image >>>'
    struct.pack_into('<IIIII', head, 0x40, 0xbeda107f, version, 0x190, kind, 0)
    struct.pack_into('<IIIIII', head, 0x154, map_at, data_at, 16, 4, 17, 512)
    struct.pack_into('<QIIII', head, 0x170, size, block, extra, blocks, len(places))
    head[0x188:0x198] = uuid.UUID(int=7).bytes
    table = bytearray(b'\xff' * blocks * 4)
    image, raw = head, bytearray(size)
    for i in zeroed:
        struct.pack_into('<I', table, i * 4, 0xfffffffe)
    for n, i in enumerate(places):
        struct.pack_into('<I', table, i * 4, n)
        data = pattern(block, i)
        place(image, data_at + n * (block + extra) + extra, data)
        end = min(size, (i + 1) * block)
        raw[i * block:end] = data[:end - i * block]
    place(image, map_at, table)
    put(name + '.vdi', image)
    put(name + '.raw', raw)


vdi('map-at-1m', 4 * MIB, MIB, (3, 0), map_at=MIB, data_gap=MIB - 512)
vdi('blocks-4k', 256 * KIB, 4 * KIB, (63, 0, 7), zeroed=(1, 2))
vdi('blocks-32m', 64 * MIB, 32 * MIB, (1,))
vdi('extra', 2 * MIB, 64 * KIB, (31, 5), extra=4096)
vdi('odd-size', 2 * MIB + 512, MIB, (2, 0))


# ---- bochs, cloop, parallels, qcow ------------------------------------------------------------------------------

def bochs(name, size, extent, places, version=0x20000):
    catalog = -(-size // extent) + 3
    bitmap = -(-extent // 512 // 8)
    head = bytearray(512)
    struct.pack_into('<32s16s16sIIIII', head, 0, b'Bochs Virtual HD Image', b'Redolog', b'Growing', version, 512, catalog, bitmap, extent)
    struct.pack_into('<Q', head, 84, size) if version == 0x10000 else struct.pack_into('<IQ', head, 84, 0x1234, size)
    table, image, raw = bytearray(b'\xff' * catalog * 4), bytearray(head), bytearray(size)
    data_at, padded = 512 + catalog * 4, -(-bitmap // 512) * 512
    for n, (i, sectors) in enumerate(places.items()):
        struct.pack_into('<I', table, i * 4, n)
        bits, data, whole = bytearray(padded), bytearray(extent), pattern(extent, i)
        for s in sectors:
            bits[s >> 3] |= 1 << (s & 7)
            data[s * 512:s * 512 + 512] = whole[s * 512:s * 512 + 512]
            raw[i * extent + s * 512:i * extent + s * 512 + 512] = data[s * 512:s * 512 + 512]
        place(image, data_at + n * (padded + extent), bits + data)
    place(image, 512, table)
    put(name + '.bochs', image)
    put(name + '.raw', raw)


bochs('growing', 4 * MIB, MIB, {2: (0, 7, 8, 2047), 0: range(100)})
bochs('version-1', 3 * MIB, 512 * KIB, {5: (1023,), 1: range(0, 1024, 3)}, version=0x10000)
bochs('small-extents', 512 * KIB, 4 * KIB, {127: range(8), 3: (0,)})


def cloop(name, block, content, level):
    head = bytearray(128)
    text = b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n'
    head[:len(text)] = text
    parts = [zlib.compress(content[at:at + block], level) for at in range(0, len(content), block)]
    at, offsets = 136 + 8 * (len(parts) + 1), []
    for part in parts:
        offsets.append(at)
        at += len(part)
    offsets.append(at)
    put(name + '.cloop', head + struct.pack('>II', block, len(parts)) + b''.join(struct.pack('>Q', o) for o in offsets) + b''.join(parts))
    put(name + '.raw', content)


cloop('blocks-512', 512, pattern(512 * 2000, 1), 9)
cloop('blocks-1m', MIB, pattern(3 * MIB, 2), 1)
cloop('stored', 65536, os.urandom(65536 * 3), 0)


def parallels(name, magic, sectors, cluster, places, data_at, extra_entries=0):
    entries = -(-sectors // cluster) + extra_entries
    head = bytearray(64 + entries * 4)
    struct.pack_into('<16sIIIIIQIIIQ', head, 0, magic, 2, 16, 9, cluster, entries, sectors, 0, data_at, 0, 0)
    image, raw = bytearray(head), bytearray(sectors * 512)
    unit = cluster if magic == b'WithouFreSpacExt' else 1
    start = data_at or -(-len(head) // 512)
    start += -start % unit
    for n, i in enumerate(places):
        at = start + n * cluster
        struct.pack_into('<I', image, 64 + i * 4, at // unit)
        data = pattern(cluster * 512, i)
        place(image, at * 512, data)
        end = min(len(raw), (i + 1) * cluster * 512)
        raw[i * cluster * 512:end] = data[:end - i * cluster * 512]
    put(name + '.parallels', image)
    put(name + '.raw', raw)


parallels('old-63', b'WithoutFreeSpace', 8000, 63, (126, 0, 5), 16)
parallels('old-504', b'WithoutFreeSpace', 8000, 504, (15, 0), 0, extra_entries=9)
parallels('new-2048', b'WithouFreSpacExt', 8192, 2048, (3, 1), 2048)
parallels('new-1', b'WithouFreSpacExt', 200, 1, (199, 0, 100), 7)
parallels('new-63', b'WithouFreSpacExt', 6300, 63, (99, 0), 63)


def qcow(name, size, cluster_bits, l2_bits, places, packed=(), l1_at=48):
    span = cluster_bits + l2_bits
    l1 = -(-size // (1 << span))
    cluster = 1 << cluster_bits
    head = struct.pack('>IIQIIQBBxxIQ', 0x514649fb, 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, l1_at)
    image, raw = bytearray(head), bytearray(size)
    place(image, l1_at, bytes(l1 * 8))
    at, tables = -(-len(image) // cluster) * cluster, {}
    for i in list(places) + list(packed):
        table = i >> l2_bits
        if table not in tables:
            tables[table] = at
            struct.pack_into('>Q', image, l1_at + table * 8, at)
            place(image, at, bytes(8 << l2_bits))
            at = -(-(at + (8 << l2_bits)) // cluster) * cluster
        data = pattern(cluster, i)
        if i in packed:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -12)
            small = squeeze.compress(data) + squeeze.flush()
            assert len(small) < cluster
            entry = 1 << 63 | len(small) << (63 - cluster_bits) | at
            place(image, at, small)
            at += len(small)
        else:
            at = -(-at // cluster) * cluster
            entry = at
            place(image, at, data)
            at += cluster
        struct.pack_into('>Q', image, tables[table] + (i & (1 << l2_bits) - 1) * 8, entry)
        end = min(size, (i + 1) * cluster)
        raw[i * cluster:end] = data[:end - i * cluster]
    image += bytes(-len(image) % 512)
    put(name + '.qcow', image)
    put(name + '.raw', raw)


qcow('clusters-512', 300 * KIB, 9, 6, (0, 63, 64, 599))
qcow('clusters-64k', 5 * MIB + 512, 16, 13, (80, 2), packed=(1, 3, 4))
qcow('packed-side-by-side', 2 * MIB, 12, 9, (5,), packed=(0, 1, 2, 3, 511))
qcow('l1-far', MIB, 12, 9, (0, 255), l1_at=123 * 512)


# ---- vhdx --------------------------------------------------------------------------------------------------------

def crc32c(data):
    table = crc32c.__dict__.setdefault('table', [])
    if not table:
        for i in range(256):
            c = i
            for _ in range(8):
                c = (c >> 1) ^ 0x82f63b78 if c & 1 else c >> 1
            table.append(c)
    c = 0xffffffff
    for byte in data:
        c = table[(c ^ byte) & 255] ^ (c >> 8)
    return c ^ 0xffffffff


def sealed(block):
    block = bytearray(block)
    struct.pack_into('<I', block, 4, 0)
    struct.pack_into('<I', block, 4, crc32c(block))
    return block


def vhdx(name, size, block, states, sector=512, bat_at=3, meta_at=2, log=1, first=8, unknown=False, sequences=(5, 4)):
    """states: block -> state of the table; 6 has data."""
    image, raw = bytearray(), bytearray(size)
    place(image, 0, b'vhdxfile' + 'Hand made 1.0'.encode('utf-16le'))
    for at, sequence in zip((0x10000, 0x20000), sequences):
        head = bytearray(4096)
        struct.pack_into('<4sIQ16s16s16sHHIQ', head, 0, b'head', 0, sequence, bytes([1] * 16), bytes([2] * 16), bytes(16), 0, 1, log * MIB, MIB)
        place(image, at, sealed(head))
    regions = [(uuid.UUID('8B7CA206-4790-4B9A-B8FE-575F050F886E'), meta_at, 1, 1), (uuid.UUID('2DC27766-F623-4200-9D64-115E9BFD4A08'), bat_at, 1, 1)]
    if unknown:
        regions.insert(0, (uuid.UUID(int=9), 7, 1, 0))
    table = bytearray(65536)
    struct.pack_into('<4sII', table, 0, b'regi', 0, len(regions))
    for i, (id, at, mib, need) in enumerate(regions):
        struct.pack_into('<16sQII', table, 16 + 32 * i, id.bytes_le, at * MIB, mib * MIB, need)
    for at in (0x30000, 0x40000):
        place(image, at, sealed(table))
    items = [('CAA16737-FA36-4D43-B3B6-33F0AA44E76B', struct.pack('<II', block, 0), 4), ('2FA54224-CD1B-4876-B211-5DBED83BF4B8', struct.pack('<Q', size), 6),
             ('BECA12AB-B2E6-4523-93EF-C309E000C746', bytes(range(16)), 6), ('8141BF1D-A96F-4709-BA47-F233A8FAAB5F', struct.pack('<I', sector), 6),
             ('CDA348C7-445D-4471-9CC9-E9885251C556', struct.pack('<I', 4096), 6)]
    if unknown:
        items.insert(1, (str(uuid.UUID(int=77)), b'what nobody knows', 0))
    meta = bytearray(MIB)
    struct.pack_into('<8sHH', meta, 0, b'metadata', 0, len(items))
    at = 65536 + (4096 if unknown else 0)
    for i, (id, value, flags) in enumerate(items):
        struct.pack_into('<16sIII', meta, 32 + 32 * i, uuid.UUID(id).bytes_le, at, len(value), flags)
        meta[at:at + len(value)] = value
        at += len(value)
    place(image, meta_at * MIB, meta)
    ratio = (1 << 23) * sector // block
    bat, host = bytearray(MIB), first
    for i, state in states.items():
        entry = state
        if state == 6:
            entry |= host << 20
            data = pattern(block, i)
            place(image, host * MIB, data)
            end = min(size, (i + 1) * block)
            raw[i * block:end] = data[:end - i * block]
            host += block // MIB
        struct.pack_into('<Q', bat, (i + i // ratio) * 8, entry)
    place(image, bat_at * MIB, bat)
    put(name + '.vhdx', image)
    put(name + '.raw', raw)


vhdx('blocks-1m', 5 * MIB, MIB, {0: 6, 1: 0, 2: 2, 3: 3, 4: 6})
vhdx('sectors-4096', 8 * MIB, 2 * MIB, {3: 6, 0: 1, 1: 6}, sector=4096)
vhdx('unknown-items', 4 * MIB, 2 * MIB, {1: 6}, unknown=True)
vhdx('second-header', 4 * MIB, MIB, {1: 6, 3: 6}, sequences=(4, 5), bat_at=5, meta_at=6)
vhdx('gap', 33 * MIB, 32 * MIB, {1: 6}, first=20)
