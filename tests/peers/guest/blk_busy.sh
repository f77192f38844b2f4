# blk_busy.sh: write to the disk and read from it for ever; "busy" is printed when the first requests are done.
set -eu
modprobe virtio_blk
dd if=/dev/zero of=/dev/vda bs=64k count=16 oflag=direct status=none
echo busy
while dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct status=none; do :; done &
while dd if=/dev/zero of=/dev/vda bs=64k count=100 oflag=direct status=none; do :; done
