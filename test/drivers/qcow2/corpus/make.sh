#!/bin/sh
# Makes the images the fuzzer starts from, with the original's tools: small ones that have everything the format knows.
# Run it in this folder when the corpus is to be made anew; the results are committed.
set -eu
out=$(pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

io() { qemu-io -f qcow2 "$@" >/dev/null; }
create() { qemu-img create -q -f qcow2 "$@"; }
done_with() { gzip -9nc "$1" >"$out/$1.gz"; }

# Clusters of 512 bytes: several tables of each kind.
create -o cluster_size=512 plain512 256k
io -c 'write -P 1 0 40k' -c 'write -P 2 100k 1k' -c 'write -z 50k 2k' -c 'write -z -u 110k 4k' -c 'write -P 3 200k 10k' \
  -c 'discard 202k 2k' plain512
done_with plain512

create -o cluster_size=4k,compat=0.10 v2snapshots 512k
io -c 'write -P 1 0 64k' v2snapshots
qemu-img snapshot -c one v2snapshots
io -c 'write -P 2 16k 32k' v2snapshots
qemu-img snapshot -c two v2snapshots
io -c 'write -P 3 20k 4k' v2snapshots
done_with v2snapshots

create -o cluster_size=1k,refcount_bits=64 snapshots 256k
io -c 'write -P 1 0 20k' -c 'write -z 30k 4k' snapshots
qemu-img snapshot -c one snapshots
io -c 'write -P 2 4k 6k' -c 'discard 0 2k' snapshots
qemu-img snapshot -c two snapshots
done_with snapshots

create -o cluster_size=1k,refcount_bits=1,lazy_refcounts=on lazy 128k
io -c 'write -P 1 0 20k' -c 'flush' -c 'abort' lazy || true
done_with lazy

create -o cluster_size=16k,extended_l2=on extended 1M
io -c 'write -P 1 0 24k' -c 'write -P 2 33k 1k' -c 'write -z 64k 4k' -c 'write -z 96k 512' -c 'write -P 4 160k 40k' \
  -c 'discard 164k 8k' extended
done_with extended

for type in zlib zstd; do
  create -o cluster_size=4k,compression_type=$type plain 256k
  i=0
  while [ $i -lt 20 ]; do
    qemu-io -f qcow2 -c "write -P $i $((i * 8))k 5k" plain >/dev/null
    i=$((i + 1))
  done
  qemu-img convert -q -c -f qcow2 -O qcow2 -o cluster_size=4k,compression_type=$type plain $type
  io -c 'write -P 99 16k 1k' $type
  done_with $type
done

create -o cluster_size=1k bitmaps 256k
io -c 'write -P 1 0 10k' bitmaps
qemu-img bitmap --add -f qcow2 -g 1k bitmaps b0
qemu-img bitmap --add --disable -f qcow2 -g 4k bitmaps b1
io -c 'write -P 2 8k 20k' bitmaps
done_with bitmaps

create -o cluster_size=4k -u -b base.raw -F raw backing 256k
io -c 'write -P 1 64k 10k' -c 'write -z 128k 8k' backing 2>/dev/null || {
  truncate -s 192k base.raw
  io -c 'write -P 1 64k 10k' -c 'write -z 128k 8k' backing
}
done_with backing

create -o cluster_size=4k,data_file=external.raw,data_file_raw=on external 256k
io -c 'write -P 1 64k 10k' -c 'write -z 128k 8k' external
done_with external
