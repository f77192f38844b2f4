# console_hotplug.sh NAME ROUNDS: talk to a port that comes while we run, and wait until it has gone; several times.
set -eu
. "$(dirname "$0")/console_ports.sh"
for round in $(seq "$2"); do
	echo "waiting $round"
	device=$(port "$1")
	exec 3<>"$device"
	read -r line <&3
	echo "$round: $line"
	echo "guest $round" >&3
	while [ -d "/sys/class/virtio-ports/${device##*/}" ]; do
		sleep 0.1
	done
	echo "gone $round"
	exec 3>&-
done
