"""Images whose headers claim far more than their files hold: tables of 2^32 entries, disks of 2^60 bytes, blocks of 64 MiB
in 200 bytes. Usage: make.py FOLDER. Each one as it is, and (NAME-sparse.FORMAT) in a file of 8 TiB that is nearly empty."""
import struct, os, sys, subprocess
d=sys.argv[1]
os.makedirs(d,exist_ok=True)
def base(fmt, name, *o):
    p=os.path.join(d,name); 
    if os.path.exists(p): os.unlink(p)
    subprocess.run(['qemu-img','create','-q','-f',fmt,*o,p,'4M'],check=True)
    subprocess.run(['qemu-io','-f',fmt,'-c','write -P 1 0 64k',p],check=True,stdout=subprocess.DEVNULL)
    return bytearray(open(p,'rb').read())
def put(name,b,trunc=None):
    p=os.path.join(d,name); open(p,'wb').write(b)
    if trunc: os.truncate(p,trunc)
T=1<<43
def both(name,b):
    a,e=name.split('.'); put(name,b); put(a+'-sparse.'+e,b,T)
# vdi
b=base('vdi','t'); h=bytearray(b); struct.pack_into('<I',h,0x180,536870784); struct.pack_into('<Q',h,0x170,536870784<<20); struct.pack_into('<I',h,0x184,536870784)
struct.pack_into('<I',h,0x158,(536870784*4+512+511)//512*512)
both('blocks.vdi',h)
# vpc
def vsum(x,at,n):
    x[at:at+4]=b'\0'*4; return (~sum(x[:n]))&0xffffffff
b=base('vpc','t'); h=bytearray(b); dyn=bytearray(h[512:512+1024]); struct.pack_into('>I',dyn,28,0xffffffff); c=vsum(dyn,36,1024); struct.pack_into('>I',dyn,36,c); h[512:1536]=dyn
f=bytearray(h[:512]); struct.pack_into('>Q',f,48,2040<<30); struct.pack_into('>I',f,56,0xffff10ff); c=vsum(f,64,512); struct.pack_into('>I',f,64,c); h[:512]=f
both('entries.vpc',h)
# qed
b=base('qed','t'); h=bytearray(b); struct.pack_into('<Q',h,48,1<<60); both('size.qed',h)
h=bytearray(b); struct.pack_into('<I',h,8,16); struct.pack_into('<I',h,4,1<<26); struct.pack_into('<Q',h,40,1<<26); both('table.qed',h)
# qcow
b=base('qcow','t'); h=bytearray(b); struct.pack_into('>Q',h,24,1<<60); both('size.qcow',h)
h=bytearray(b); struct.pack_into('>Q',h,24,(1<<31)*(1<<9)*(1<<6)); h[32]=9; h[33]=6; both('l1.qcow',h)
# parallels
b=base('parallels','t'); h=bytearray(b); struct.pack_into('<I',h,32,0xffffffff); struct.pack_into('<Q',h,36,1<<60);both('bat.parallels',h)
h=bytearray(b); struct.pack_into('<I',h,32,0x1ffffff0); struct.pack_into('<Q',h,36,0x1ffffff0*2048); both('bat2.parallels',h)
# vmdk
b=base('vmdk','t'); h=bytearray(b); struct.pack_into('<Q',h,12,1<<42); struct.pack_into('<I',h,44,512); both('cap.vmdk',h)
h=bytearray(b); struct.pack_into('<Q',h,12,(1<<25)*512*1); struct.pack_into('<Q',h,20,1); both('gd.vmdk',h)
h=bytearray(b); struct.pack_into('<Q',h,36,1<<40); both('desc.vmdk',h)
put('many.vmdk',b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'+b'RW 1 ZERO\n'*2000000)
# vhdx
b=base('vhdx','t')
def crc32c(x):
    t=[]
    for i in range(256):
        c=i
        for _ in range(8): c=(c>>1)^0x82F63B78 if c&1 else c>>1
        t.append(c)
    c=0xffffffff
    for v in x: c=t[(c^v)&255]^(c>>8)
    return c^0xffffffff
def fix(h,at,n):
    h[at+4:at+8]=b'\0'*4; struct.pack_into('<I',h,at+4,crc32c(h[at:at+n]))
h=bytearray(b)
for a in (0x10000,0x20000): struct.pack_into('<I',h,a+68,0xfff00000); h[a+48:a+64]=b'x'*16; fix(h,a,4096)
both('log.vhdx',h)
h=bytearray(b); i=h.find(b'metadata',0x200000)
# virtual disk size value: 8 bytes = 4 MiB
j=h.find(struct.pack('<Q',4<<20),0x200000); struct.pack_into('<Q',h,j,1<<60); both('size.vhdx',h)
h=bytearray(b); struct.pack_into('<Q',h,j,64<<40); 
for a in (0x30000,0x40000):
    for k in range(2):
        e=a+16+k*32
        if struct.unpack_from('<I',h,e+24)[0] != 0 and h[e:e+4]!=bytes.fromhex('06a27c8b'): struct.pack_into('<I',h,e+24,0xfff00000)
    fix(h,a,65536)
both('bat.vhdx',h)
# cloop
h=bytearray(200000); h[:10]=b'#!/bin/sh\n'; h[:40]=b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop f'; struct.pack_into('>II',h,128,512,0x3fffffe); both('n.cloop',h)
h2=bytearray(h); struct.pack_into('>II',h2,128,64<<20,2); struct.pack_into('>QQQ',h2,136,160,190,199000); both('block.cloop',h2)
# bochs
h=bytearray(512); h[:32]=b'Bochs Virtual HD Image'.ljust(32,b'\0'); h[32:48]=b'Redolog'.ljust(16,b'\0'); h[48:64]=b'Growing'.ljust(16,b'\0'); struct.pack_into('<III',h,64,0x20000,512,0x3fffffff); struct.pack_into('<II',h,76,1,4096);
struct.pack_into('<IIII',h,64,0x00020000,512,0x40000,1); struct.pack_into('<I',h,80,0x80000000);struct.pack_into('<IQ',h,84,0,1<<50); both('cat.bochs',h+bytes(4096))
# qcow2
b=base('qcow2','t'); h=bytearray(b); struct.pack_into('>I',h,36,0xffffffff); both('l1.qcow2',h)
h=bytearray(b); struct.pack_into('>I',h,36,4194304); struct.pack_into('>Q',h,24,1<<50); struct.pack_into('>I',h,56,128); both('rt.qcow2',h)
# dmg
k=bytearray(512); k[:4]=b'koly'; struct.pack_into('>II',k,4,4,512); struct.pack_into('>QQ',k,216,0,1<<60); struct.pack_into('>Q',k,492,1<<55); both('plist.dmg',bytearray(4096)+k)
open(d+'/plist-sparse.dmg','ab').close()
with open(d+'/plist-sparse.dmg','r+b') as fh: fh.seek(T-512); fh.write(k)
import base64
m=bytearray(204+40*3); m[:4]=b'mish'; struct.pack_into('>I',m,4,1); struct.pack_into('>Q',m,16,1<<50); struct.pack_into('>I',m,200,0xffffffff)
pl=b'<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>'+base64.b64encode(m)+b'</data></dict></array></dict></dict></plist>'
k2=bytearray(k); struct.pack_into('>QQ',k2,216,0,len(pl)); both('chunks.dmg',bytearray(pl)+bytearray(-len(pl)%512)+k2)
m=bytearray(204+40*2); m[:4]=b'mish'; struct.pack_into('>I',m,4,1); struct.pack_into('>Q',m,16,131072); struct.pack_into('>I',m,200,2)
struct.pack_into('>IIQQQQ',m,204,0x80000005,0,0,131072,0,64); struct.pack_into('>IIQQQQ',m,244,0xffffffff,0,131072,0,0,0)
pl=bytes(64)+b'<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>'+base64.b64encode(m)+b'</data></dict></array></dict></dict></plist>'
k2=bytearray(k); struct.pack_into('>QQ',k2,216,64,len(pl)-64);  struct.pack_into('>Q',k2,492,131072); both('big.dmg',bytearray(pl)+bytearray(-len(pl)%512)+k2)
os.path.exists(d+'/t') and os.unlink(d+'/t')
