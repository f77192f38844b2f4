# scsi.sh: to be sourced; loads the SCSI host's driver and those of disks, CD-ROM drives and generic access.
for module in sd_mod sr_mod sg virtio_scsi; do
	modprobe "$module"
done

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	left=$(($1 * 10))
	shift
	until "$@" 2>/dev/null; do
		left=$((left - 1))
		[ "$left" -gt 0 ] || { echo "not in time: $*"; exit 1; }
		sleep 0.1
	done
}
