# The guest's first process: init.sh SCRIPT [ARG...]. What it prints between the marks is read by tests/peers/uml.py.
# Nothing of the host is writable; /run is the guest's own, and the working directory of the script.
export PATH=/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TERM=dumb LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
[ -e /dev/null ] || mount -t devtmpfs dev /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs run /run

# The kernel's modules are not where a host's modprobe (which need not be installed) would look.
mkdir /run/bin
ln -s "$(dirname "$0")/modprobe.sh" /run/bin/modprobe
for applet in rmmod dmesg; do
	ln -s "$(command -v busybox)" /run/bin/$applet
done

cd /run
echo "=== begin"
/bin/sh "$@" </dev/null 2>&1
echo "=== exit $?"
dmesg
echo "=== end"
sync
exec busybox poweroff -f
