# qemu_blk_moves.sh BLOCKS DD: use the first disk while the machine is moved to another host, until its last block says "stop".
# Blocks are of 256 KiB. Each round reads a block from the disk's first part into the page cache, and fills one of the
# second part with lines that name the round. BLOCKS is how many each part has; DD is GNU's: with busybox's no
# transfer is direct.
set -eu
disk=/dev/vda blocks=$1 dd=$2 round=0 block=262144
[ -b $disk ]
exec 3<$disk # or the page cache would be dropped by each last one to close it
echo "features: $(cat /sys/block/vda/device/features)"
until [ "$($dd if=$disk bs=512 count=1 iflag=direct,skip_bytes skip=$((2 * blocks * block)) status=none)" = stop ]; do
	$dd if=$disk of=/dev/null bs=$block skip=$((round % blocks)) count=1 status=none
	yes "round $round" | head -c $block |
		$dd of=$disk bs=$block iflag=fullblock oflag=direct seek=$((blocks + round % blocks)) conv=notrunc status=none
	echo "round $round"
	round=$((round + 1))
done
# What the device has put into memory, on both hosts, and what the disk has.
for name in memory disk; do
	echo "$name: $($dd if=$disk bs=$block count=$blocks status=none | md5sum)"
	echo 3 >/proc/sys/vm/drop_caches
done
