# console_tty.sh ROUNDS "ROWS COLS" "ROWS COLS": use a text console whose size changes from the first to the second.
# An empty first size is not waited for. The driver is loaded anew in each round.
set -eu
. "$(dirname "$0")/console_ports.sh"
for round in $(seq "$1"); do
	[ "$round" = 1 ] || modprobe virtio_console
	await_console
	# Kept open: where nobody has it open, Linux sets the size some time after the next opening.
	exec 4<>/dev/hvc0
	stty raw -echo <&4
	[ -z "$2" ] || await_size "$2"
	echo "ready $round"
	read -r line <&4
	echo "typed: $line"
	echo "printed $line" >&4
	await_size "$3"
	echo "resized $round"
	exec 4>&-
	sleep 0.5
	rmmod virtio_console
done
