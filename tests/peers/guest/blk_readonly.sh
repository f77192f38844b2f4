# blk_readonly.sh: a read-only disk with an ext4 file system can be read and mounted, and takes no write.
set -eu
disk=/dev/vda
modprobe virtio_blk
echo "ro: $(blockdev --getro "$disk")"
if dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct status=none; then
	echo "a read-only disk was written"
	exit 1
fi
if blkdiscard "$disk"; then
	echo "a read-only disk was discarded"
	exit 1
fi
echo "disk: $(sha256sum <"$disk" | cut -d' ' -f1)"
mount -o ro "$disk" /mnt
echo "file: $(cat /mnt/file)"
if touch /mnt/other; then
	echo "a read-only file system was written"
	exit 1
fi
umount /mnt
