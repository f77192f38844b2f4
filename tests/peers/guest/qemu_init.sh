#!/bin/sh
# The first process of a guest of QEMU's: what it prints between the marks is read by tests/peers/uml.py.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin:/sbin HOME=/run TERM=dumb LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
cd /run
for module in /modules/*; do
	insmod "$module" || echo "no module $module"
done
echo "=== begin"
sh /job </dev/null 2>&1
echo "=== exit $?"
dmesg
echo "=== end"
sync
poweroff -f
