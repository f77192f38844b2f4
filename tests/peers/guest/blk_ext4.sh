# blk_ext4.sh PATTERN OFFSET [FILES]: make a file system on the disk below OFFSET (bytes), fill it with copies of the host's
# files, read them back after a remount, delete a third, trim; then fill 128 KiB at OFFSET with lines of PATTERN, and write
# zeroes to the second half of them by WRITE_ZEROES.
# Left on the disk: the tree in /tree, and /manifest, its SHA-256 sums.
set -eu
pattern=$1 offset=$2 files=${3:-2000} disk=/dev/vda
modprobe virtio_blk
mkfs.ext4 -q -F "$disk" "$((offset / 1024))k"
mount "$disk" /mnt

find /usr/lib/python3* /usr/share -xdev -type f -size -32k -name '[A-Za-z0-9]*' 2>/dev/null |
	grep -v ' ' | sed 's,^/,,' | head -n "$files" >list
mkdir /mnt/tree
tar -C / -cf - -T list | tar -C /mnt/tree -xf -
(cd / && xargs sha256sum) <list >sums
sync
umount /mnt

mount "$disk" /mnt
(cd /mnt/tree && sha256sum --quiet -c /run/sums)
awk 'NR % 3 == 0' list | (cd /mnt/tree && xargs rm)
awk 'NR % 3 != 0' sums >/mnt/manifest
sync
fstrim -v /mnt
umount /mnt

mount -o ro "$disk" /mnt
(cd /mnt/tree && sha256sum --quiet -c ../manifest)
echo "files: $(wc -l </mnt/manifest)"
umount /mnt
e2fsck -fn "$disk"

yes "$pattern" | head -c 131072 >pattern
dd if=pattern of="$disk" bs=64k count=2 oflag=direct,seek_bytes seek="$offset" conv=notrunc status=none
dd if="$disk" bs=64k count=2 iflag=direct,skip_bytes skip="$offset" status=none | cmp - pattern
blkdiscard --zeroout --offset "$((offset + 65536))" --length 65536 "$disk"
dd if="$disk" bs=64k count=2 iflag=direct,skip_bytes skip="$offset" status=none >after
head -c 65536 pattern | cmp -n 65536 - after
cmp -n 65536 -i 65536:0 after /dev/zero
