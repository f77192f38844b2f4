# blk_resize.sh SECTORS: wait until the disk has SECTORS sectors of 512 bytes, then read its last.
set -eu
modprobe virtio_blk
echo "sectors: $(cat /sys/block/vda/size)"
until [ "$(cat /sys/block/vda/size)" = "$1" ]; do
	sleep 0.1
done
dd if=/dev/vda of=last bs=512 skip="$(($1 - 1))" iflag=direct status=none
echo "last: $(wc -c <last) bytes"
