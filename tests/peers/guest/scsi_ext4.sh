# scsi_ext4.sh [FILES]: make a file system on the first SCSI disk, fill it with copies of the host's files, read them
# back after a remount, delete a third, trim. Left on the disk: the tree in /tree, and /manifest, its SHA-256 sums.
set -eu
. "$(dirname "$0")/scsi.sh"
files=${1:-1800} disk=/dev/sda
wait_for 10 [ -b "$disk" ]
mkfs.ext4 -q -F "$disk"
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
