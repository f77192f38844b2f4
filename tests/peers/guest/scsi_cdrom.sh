# scsi_cdrom.sh: read the disc in the CD-ROM drive, and open its tray.
set -eu
. "$(dirname "$0")/scsi.sh"
wait_for 10 [ -b /dev/sr0 ]
echo "sectors: $(cat /sys/block/sr0/size)"
echo "disc: $(sha256sum </dev/sr0 | cut -d' ' -f1)"
sg_inq /dev/sr0 | grep -i 'peripheral device type' || sg_inq /dev/sr0
cat /proc/sys/dev/cdrom/info
if dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 oflag=direct status=none; then
	echo "a CD-ROM was written"
	exit 1
fi
sg_start --eject /dev/sr0
sg_turs /dev/sr0 && exit 1
sg_start --load /dev/sr0
wait_for 5 sg_turs /dev/sr0
echo "again: $(sha256sum </dev/sr0 | cut -d' ' -f1)"
