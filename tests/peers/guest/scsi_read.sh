# scsi_read.sh: find the first disk, write to it and read it.
set -eu
. "$(dirname "$0")/scsi.sh"
wait_for 20 test -b /dev/sda
dd if=/dev/urandom of=/dev/sda bs=64k count=16 oflag=direct status=none
dd if=/dev/sda of=/dev/null bs=64k count=16 iflag=direct status=none
sync
