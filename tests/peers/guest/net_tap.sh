# A guest on a tap interface of the host: net_tap.sh PYTHON MEGABYTES PAIRS. The host is 10.77.0.1.
set -e
modprobe virtio_net
ip link set lo up
ip link set eth0 up
ip addr add 10.77.0.2/24 dev eth0
ping -q -c 3 -i 0.2 -w 10 10.77.0.1
"$1" "$(dirname "$0")/transfer.py" connect 10.77.0.1 41700 "$2"

echo "== large MTU"
ip link set eth0 mtu 9000
ping -q -c 3 -i 0.2 -w 10 -M do -s 8972 10.77.0.1

echo "== queues"
ethtool -L eth0 combined "$3"
ethtool -l eth0 | sed -n 's/^Combined:[^0-9]*/combined /p' | tail -1
ping -q -c 20 -i 0.01 -w 10 10.77.0.1
"$1" "$(dirname "$0")/transfer.py" connect 10.77.0.1 41701 8

echo "== modes"
ip link set eth0 promisc on
ip link set eth0 promisc off
ip link set eth0 address 02:00:00:00:77:02
ping -q -c 3 -i 0.2 -w 10 10.77.0.1

echo "== again"
rmmod virtio_net
modprobe virtio_net
ip link set eth0 up
ip addr add 10.77.0.2/24 dev eth0
ping -q -c 3 -i 0.2 -w 10 10.77.0.1
