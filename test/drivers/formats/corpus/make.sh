#!/bin/bash
# Makes the images that the fuzzer of formats begins with, by QEMU's tools. Usage: make.sh (in this folder).
set -e
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
data=(-c 'write -P 1 0 64k' -c 'write -P 2 1M 4k' -c 'write -P 3 2500k 200k')
make() { # NAME FORMAT OPTIONS
  qemu-img create -q -f "$2" ${3:+-o "$3"} "$tmp/$1" 4M
  qemu-io -f "$2" "${data[@]}" "$tmp/$1" > /dev/null
  gzip -9nc "$tmp/$1" > "$1.gz"
}
make dynamic.vdi vdi
make static.vdi vdi static=on
make dynamic.vpc vpc
make fixed.vpc vpc subformat=fixed
make dynamic.vhdx vhdx block_size=1M
make fixed.vhdx vhdx block_size=1M,subformat=fixed,block_state_zero=off
make sparse.vmdk vmdk
make zeroed.vmdk vmdk zeroed_grain=on
qemu-img convert -f vdi -O vmdk -o subformat=streamOptimized "$tmp/dynamic.vdi" "$tmp/stream.vmdk"
gzip -9nc "$tmp/stream.vmdk" > stream.vmdk.gz
make plain.qed qed
make small.qed qed cluster_size=4k,table_size=2
make plain.qcow qcow
make plain.parallels parallels cluster_size=64k
