# blk_modes.sh [ROUNDS]: print what the driver made of the device's configuration, as "ROUND NAME VALUE", loading the
# driver anew in each round. cache_type is set to both modes, where the device lets the driver choose.
set -eu
disk=/sys/block/vda

show() {
	for file in $disk/size $disk/ro $disk/serial $disk/cache_type $disk/queue/*; do
		value=
		# Some have no newline at their end, which makes read fail, and some cannot be read.
		[ ! -f "$file" ] || read -r value 2>/dev/null <"$file" || :
		[ -z "$value" ] || echo "$1 ${file##*/} $value"
	done
}

toggle() {
	for mode in "write through" "write back"; do
		echo "$mode" 2>/dev/null >$disk/cache_type || return 0
		read -r now <$disk/queue/write_cache
		echo "$1 set_${mode#write } $now"
	done
}

for round in $(seq "${1:-2}"); do
	modprobe virtio_blk
	show "$round"
	echo "$round packed $(cut -c35 /sys/bus/virtio/devices/virtio*/features)"
	toggle "$round"
	dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct status=none
	rmmod virtio_blk
done
