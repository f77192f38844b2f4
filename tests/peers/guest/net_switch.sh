# One of two guests on a switch: net_switch.sh PYTHON MEGABYTES listen|connect NUMBER OTHER
set -e
address() { echo "10.78.$2.$1"; }
modprobe virtio_net
modprobe 8021q
ip link set lo up
ip link set eth0 up
ip addr add "$(address "$4" 0)/24" dev eth0
ip link add link eth0 name eth0.5 type vlan id 5
ip addr add "$(address "$4" 5)/24" dev eth0.5
ip link set eth0.5 up
program="$(dirname "$0")/transfer.py"
if [ "$3" = listen ]; then
	echo ready
	"$1" "$program" listen "$(address "$4" 0)" 41700 "$2"
	"$1" "$program" listen "$(address "$4" 5)" 41701 4
else
	ping -q -c 5 -i 0.2 -w 20 "$(address "$5" 0)"
	ping -q -c 5 -i 0.2 -w 20 "$(address "$5" 5)"
	"$1" "$program" connect "$(address "$5" 0)" 41700 "$2"
	for attempt in 1 2 3 4 5 6 7 8 9; do
		"$1" "$program" connect "$(address "$5" 5)" 41701 4 && break
		sleep 1
	done
fi
