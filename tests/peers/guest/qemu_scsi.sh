# qemu_scsi.sh: what sg3-utils make of the first disk of a SCSI host, and a file system on the second one. Left there: the
# files of /tree, and /manifest, their SHA-256 sums.
set -eu
echo "features: $(cat /sys/bus/virtio/devices/virtio0/features)"
for attempt in $(seq 100); do
	[ -b /dev/sdb ] && break
	sleep 0.1
done
echo "== luns"
sg_luns /dev/sg0
echo "== inquiry"
sg_inq /dev/sg0
echo "== capacity"
sg_readcap -l /dev/sg0
echo "== contents"
dd if=/dev/sda bs=64k iflag=direct status=none | md5sum
echo "== files"
mkfs.ext4 -q -F /dev/sdb
mount /dev/sdb /mnt
mkdir /mnt/tree
for number in $(seq 30); do
	head -c $((number * 997)) /dev/urandom >"/mnt/tree/$number"
done
(cd /mnt/tree && sha256sum *) >/mnt/manifest
umount /mnt
echo "files: 30"
