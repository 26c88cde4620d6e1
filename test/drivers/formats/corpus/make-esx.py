#!/usr/bin/env python3
"""Makes small extents as ESX has them (COWD and SEsparse), by hand after the formats' descriptions, in this folder.
QEMU 7.2 reads both, below descriptors, as vmdk.test.ts says."""
import gzip
import struct,os
def cowd(name,blocks):
    # 4 MiB disk, grains of 8 sectors; 1 GT of 4096 entries
    sectors=8192; gran=8
    gd=4; gt=gd+1; data=gt+32
    h=bytearray(2048); h[0:4]=b'COWD'; struct.pack_into('<IIIIII',h,4,1,3,sectors,gran,gd,1)
    g=bytearray(512); struct.pack_into('<I',g,0,gt)
    t=bytearray(4096*4); d=bytearray()
    s=(data+7)//8*8
    for i,(b,v) in enumerate(sorted(blocks.items())):
        struct.pack_into('<I',t,b*4,s+i*8); d+=bytes([v])*4096
    struct.pack_into('<I',h,28,s+len(blocks)*8)
    img=h+g+t; img+=bytes(s*512-len(img))+d
    open(name,'wb').write(gzip.compress(bytes(img),9,mtime=0))
def se(name,blocks):
    cap=8192*4 # 16 MiB
    vol=2; gd=8; gdsz=8; gts=16; gtsz=64; fb=gts+gtsz; grains=128
    h=bytearray(512)
    struct.pack_into('<QQQQQ',h,0,0xcafebabe,0x200000001,cap,8,64)
    struct.pack_into('<QQ',h,80,vol,1)
    struct.pack_into('<QQQQ',h,96,4,1,5,1)
    struct.pack_into('<QQQQ',h,128,gd,gdsz,gts,gtsz)
    struct.pack_into('<QQQQQQ',h,160,fb,8,fb+8,8,grains,len(blocks)*8)
    img=bytearray(grains*512); img[0:512]=h
    struct.pack_into('<QQQB',img,vol*512,0xcafecafe,0,0,0)
    struct.pack_into('<Q',img,gd*512,0x1000000000000000|0)
    for i,(b,v) in enumerate(sorted(blocks.items())):
        n=i
        e=0x3000000000000000|((n&0xfff)<<48)|(n>>12)
        struct.pack_into('<Q',img,gts*512+b*8,e); img+=bytes([v])*4096
    struct.pack_into('<Q',img,gts*512+100*8,0x2000000000000000)
    struct.pack_into('<Q',img,gts*512+101*8,0x1000000000000000)
    open(name,'wb').write(gzip.compress(bytes(img),9,mtime=0))
B={0:1,1:2,5:3,1000:4,1023:5}
cowd('cowd.vmdk.gz',B)
se('sesparse-extent.vmdk.gz',{0:9,2:8,3:7,999:6})
