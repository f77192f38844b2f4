# qemu_net_moves.sh MEGABYTES: pings a host, 10.77.0.1, and sends it megabytes by TCP that it sends back, while the machine
# is moved to another back-end, until the host listens at port 41701.
set -eu
echo "features: $(cat /sys/class/net/eth0/device/features)"
ip link set lo up
ip link set eth0 up
ip addr add 10.77.0.2/24 dev eth0
head -c "$1"m /dev/urandom >sent
round=0
until nc -w 1 10.77.0.1 41701 </dev/null; do
	ping -q -c 1 -w 5 10.77.0.1 >/dev/null
	nc 10.77.0.1 41700 <sent >received
	cmp sent received
	echo "round $round"
	round=$((round + 1))
done
ping -q -c 5 -i 0.2 -w 20 10.77.0.1
