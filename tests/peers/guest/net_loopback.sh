# net_loopback.sh: an interface whose frames all come back; what the driver sends, posts and commands is what matters.
set -eu
modprobe virtio_net
ip link set eth0 up
ip addr add 10.79.0.1/24 dev eth0
ip link set eth0 promisc on
ip link set eth0 promisc off
ip maddr add 33:33:00:00:be:ef dev eth0
ip link set eth0 address 52:54:00:66:b5:79
modprobe 8021q
ip link add link eth0 name eth0.5 type vlan id 5
ip link set eth0.5 up
ping -q -c 3 -i 0.2 -W 1 -b 10.79.0.255 || true
ping -q -c 3 -i 0.2 -W 1 -s 1400 10.79.0.2 || true
