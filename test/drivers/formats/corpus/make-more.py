#!/usr/bin/env python3
"""More images that the fuzzer of formats begins with: what QEMU's tools do not make. Usage: make-more.py (in this folder);
needs qemu-img, qemu-io, cryptsetup, and qblock-img on the path."""
import gzip, hashlib, os, struct, subprocess, tempfile

MIB = 1 << 20
tmp = tempfile.mkdtemp()


def run(*command, **more):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **more)


def keep(name, content):
    with open(name + '.gz', 'wb') as out:
        out.write(gzip.compress(bytes(content), 9, mtime=0))


def create(format, *options, size='4M', fill=True):
    path = os.path.join(tmp, 'image')
    if os.path.exists(path):
        os.unlink(path)
    run('qemu-img', 'create', '-q', '-f', format, *options, path, size)
    if fill:
        run('qemu-io', '-f', format, '-c', 'write -P 1 0 64k', '-c', 'write -P 2 1M 4k', '-c', 'write -P 3 2500k 200k', path)
    return path


def read(path):
    with open(path, 'rb') as file:
        return bytearray(file.read())


# luks: both versions, the passphrase is "secret"
def cryptsetup(name, *options):
    path = os.path.join(tmp, 'volume')
    with open(path, 'wb') as file:
        file.truncate(MIB)
    run('cryptsetup', '-q', 'luksFormat', '--key-size', '128', *options, path, input=b'secret')
    image = read(path)
    # Noise where there is no key: nobody looks at it.
    start, end = (208 + 48 + 40, 104) if image[7] == 1 else (None, None)
    start = struct.unpack_from('>I', image, start)[0] * 512 if start else 32768 + 64512
    end = struct.unpack_from('>I', image, end)[0] * 512 if end else MIB // 2
    image[start:end] = bytes(end - start)
    keep(name, image)


cryptsetup('version1.luks', '--type', 'luks1', '--cipher', 'aes-cbc-essiv:sha256', '--pbkdf-force-iterations', '1000')
LUKS2 = ('--type', 'luks2', '--cipher', 'aes-cbc-plain64', '--luks2-metadata-size', '16k', '--luks2-keyslots-size', '128k',
         '--offset', '1024')
cryptsetup('version2.luks', *LUKS2, '--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', '1000')
cryptsetup('argon.luks', *LUKS2, '--pbkdf', 'argon2id', '--pbkdf-force-iterations', '4', '--pbkdf-memory', '64',
           '--pbkdf-parallel', '1', '--sector-size', '4096')

# qcow and qed with a backing file, compressed clusters, the old encryption
keep('backing.qcow', read(create('qcow', '-u', '-b', 'base.raw', '-F', 'raw', fill=False)))
keep('backing.qed', read(create('qed', '-u', '-b', 'base.raw', '-F', 'raw', fill=False)))
raw = create('raw')
packed = os.path.join(tmp, 'packed')
run('qblock-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow', raw, packed)
keep('packed.qcow', read(packed))
keep('aes.qcow', read(create('qcow', '--object', 'secret,id=s,data=secret', '-o', 'encrypt.format=aes,encrypt.key-secret=s',
                             fill=False)))

# parallels: the old magic with clusters of 63 sectors, dirty bitmaps
image = read(create('parallels', '-o', 'cluster_size=64k'))
extension = bytearray(65536)
bits = bytearray(65536)
bits[0] = 5
end = (len(image) + 65535) // 65536 * 65536
struct.pack_into('<Q', extension, 0, 0xab234cef23dcea87)
struct.pack_into('<Q', extension, 24, 0x20385fae252cb34a)
struct.pack_into('<I', extension, 40, 40)
struct.pack_into('<Q', extension, 48, 8192)
extension[56:72] = bytes(range(16))
struct.pack_into('<IIQ', extension, 72, 128, 1, (end + 65536) // 512)
extension[8:24] = hashlib.md5(extension[24:]).digest()
struct.pack_into('<Q', image, 56, end // 512)
keep('bitmaps.parallels', image + bytes(end - len(image)) + extension + bits)
old = bytearray(64) + bytearray(131 * 4)
old[:16] = b'WithoutFreeSpace'
struct.pack_into('<IIIIIQIII', old, 16, 2, 16, 8, 63, 131, 8192, 0, 16, 0)
old += bytes(16 * 512 - len(old))
for place, index in enumerate((0, 5, 130)):
    struct.pack_into('<I', old, 64 + 4 * index, 16 + 63 * place)
    old += bytes([index + 1]) * (63 * 512)
keep('old.parallels', old)

# vdi: blocks of 64 KiB with 512 bytes before each
vdi = read(create('vdi', fill=False))[:512]
struct.pack_into('<I', vdi, 0x154, 512)
struct.pack_into('<I', vdi, 0x158, 1024)
struct.pack_into('<QII', vdi, 0x170, 4 * MIB, 65536, 512)
struct.pack_into('<II', vdi, 0x180, 64, 3)
table = bytearray(b'\xff' * 512)
for place, index in enumerate((5, 0, 63)):
    struct.pack_into('<I', table, 4 * index, place)
struct.pack_into('<I', table, 4 * 7, 0xfffffffe)
keep('small-blocks.vdi', vdi + table + b''.join(bytes(512) + bytes([i]) * 65536 for i in (5, 1, 63)))

# vmdk: descriptors of their own
HEAD = '''# Disk DescriptorFile
version=1
CID=12345678
parentCID=%s
createType="%s"
%s
# Extent description
%s

# The Disk Data Base
#DDB
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "16"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
'''
keep('flat.vmdk', (HEAD % ('ffffffff', 'monolithicFlat', '', 'RW 384 FLAT "disk-flat.vmdk" 0')).encode())
keep('extents.vmdk', (HEAD % ('ffffffff', 'custom', '',
     'RW 100 FLAT "a-f001.vmdk" 3\nRW 64 ZERO\nRDONLY 120 FLAT "dir/b f002.vmdk" 0\nRW 64 SPARSE "s003.vmdk"')).encode())
keep('split.vmdk', (HEAD % ('ffffffff', 'twoGbMaxExtentFlat', '',
     'RW 300 FLAT "a-f001.vmdk" 0\nRW 84 FLAT "a-f002.vmdk" 0')).encode())
keep('child.vmdk', (HEAD % ('0badcafe', 'monolithicFlat', 'parentFileNameHint="C:\\disks\\parent.vmdk"',
     'RW 384 FLAT "disk-flat.vmdk" 0')).encode())
stream = os.path.join(tmp, 'stream')
run('qblock-img', 'convert', '-f', 'raw', '-O', 'vmdk', '-o', 'subformat=streamOptimized', create('raw'), stream)
keep('footer.vmdk', read(stream))
