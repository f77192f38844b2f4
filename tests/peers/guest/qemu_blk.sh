# qemu_blk.sh FILES: make a file system on the first disk, fill it with files of random bytes, and read them back after a
# remount. Left on the disk: the tree in /tree, and /manifest, its SHA-256 sums.
set -eu
disk=/dev/vda
[ -b $disk ]
echo "device: $(cat /sys/block/vda/device/../device)"
echo "features: $(cat /sys/block/vda/device/features)"
mkfs.ext4 -q -F $disk
mount $disk /mnt
mkdir /mnt/tree
for number in $(seq "$1"); do
	head -c $((number * 997)) /dev/urandom >"/mnt/tree/$number"
done
(cd /mnt/tree && sha256sum *) >/mnt/manifest
sync
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -o ro $disk /mnt
(cd /mnt/tree && sha256sum -c ../manifest) | grep -vc OK || true
echo "files: $(wc -l </mnt/manifest)"
umount /mnt
