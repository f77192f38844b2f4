# qemu_net.sh MEGABYTES: the first network interface and a host that is 10.77.0.1: pings, and as many megabytes by TCP to
# its port 41700, which sends them back.
set -eu
echo "features: $(cat /sys/class/net/eth0/device/features)"
ip link set lo up
ip link set eth0 up
ip addr add 10.77.0.2/24 dev eth0
ping -q -c 5 -i 0.2 -w 20 10.77.0.1
ping -q -c 3 -i 0.2 -w 10 -s 1400 10.77.0.1
head -c "$1"m /dev/urandom >sent
nc 10.77.0.1 41700 <sent >received
cmp sent received
md5sum <sent
