# console_open.sh NAME: see the other side of a port close and open, and close and open the port.
set -eu
. "$(dirname "$0")/console_ports.sh"
device=$(port "$1")
exec 3<>"$device"
read -r line <&3
echo "first: $line"
if read -r line <&3; then
	echo "not the end: $line"
	exit 1
fi
echo "the other side has closed"
until read -r line <&3; do
	sleep 0.1
done
echo "second: $line"
exec 3>&-
echo "closed here"
sleep 1
exec 3<>"$device"
read -r line <&3
echo "third: $line"
echo "done" >&3
