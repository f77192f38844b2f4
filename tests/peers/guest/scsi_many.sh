# scsi_many.sh N: wait for N disks, read a block of each and print "DISK ADDRESS TEXT", TEXT being its first line.
set -eu
. "$(dirname "$0")/scsi.sh"

enough() {
	[ "$(ls -d /sys/block/sd* | wc -l)" -ge "$1" ]
}

wait_for 60 enough "$1"
for disk in /sys/block/sd*; do
	name=${disk##*/}
	address=$(basename "$(readlink -f "$disk/device")")
	wait_for 10 [ -b "/dev/$name" ]
	read -r text <"/dev/$name"
	echo "$name $address $text"
done
