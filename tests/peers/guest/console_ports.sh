# console_ports.sh: functions for scripts that use the ports of a console, to be sourced.
modprobe virtio_console

# port NAME: wait for the port of this name, and print its device.
port() {
	while :; do
		for file in /sys/class/virtio-ports/*/name; do
			if [ -f "$file" ] && [ "$(cat "$file")" = "$1" ]; then
				file=${file%/name}
				# PORT_OPEN comes behind the name.
				sleep 0.2
				echo "/dev/${file##*/}"
				return
			fi
		done
		sleep 0.1
	done
}

# await_console: wait until the text console is there.
await_console() {
	until stty -F /dev/hvc0 >/dev/null 2>&1; do
		sleep 0.1
	done
}

# await_size "ROWS COLS": wait until the console, open as 4, has this size.
await_size() {
	until [ "$(stty size <&4)" = "$1" ]; do
		sleep 0.1
	done
	echo "size: $1"
}
