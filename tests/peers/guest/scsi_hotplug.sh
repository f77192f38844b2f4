# scsi_hotplug.sh: wait for a disk that comes, reads it, waits until it is larger, and until it goes. "ready", "seen" and
# "grown" tell the host when to do the next.
set -eu
. "$(dirname "$0")/scsi.sh"
wait_for 10 [ -b /dev/sda ]
echo ready
wait_for 20 [ -b /dev/sdb ]
echo "address: $(basename "$(readlink -f /sys/block/sdb/device)")"
echo "sectors: $(cat /sys/block/sdb/size)"
dd if=/dev/sdb bs=4k count=16 iflag=direct status=none | sha256sum
before=$(cat /sys/block/sdb/size)
echo seen

larger() {
	[ "$(cat /sys/block/sdb/size)" -gt "$1" ]
}

wait_for 20 larger "$before"
echo "sectors: $(cat /sys/block/sdb/size)"
echo grown

gone() {
	[ ! -e /sys/block/sdb ]
}

wait_for 20 gone
dd if=/dev/sda of=/dev/null bs=64k count=4 iflag=direct status=none
echo "left: $(ls -d /sys/block/sd* | wc -l)"
