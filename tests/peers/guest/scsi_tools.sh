# scsi_tools.sh: what sg3-utils make of the first disk, each tool's output behind "== NAME".
set -eu
. "$(dirname "$0")/scsi.sh"
disk=/dev/sg0
wait_for 10 [ -b /dev/sda ]

run() {
	echo "== $*"
	"$@" 2>&1 || echo "status $?"
}

run sg_turs $disk
run sg_inq $disk
for page in 0 sn di bl bdc lbpv ei; do
	run sg_vpd -p $page $disk
done
run sg_readcap -l $disk
run sg_readcap $disk
run sg_luns $disk
run sg_luns -s 2 $disk
run sg_opcodes $disk
run sg_opcodes -o 0x42 $disk
run sg_opcodes -t $disk
run sg_modes -a $disk
run sg_logs -a $disk
run sg_sync $disk
run sg_verify -l 0 -c 8 $disk

printf 'not zeros' | dd of=/dev/sda bs=512 seek=64 conv=sync,notrunc status=none oflag=direct
run sg_unmap --force -l 64 -n 8 $disk
echo "== unmapped"
dd if=/dev/sda bs=512 skip=64 count=8 iflag=direct status=none | tr -d '\0' | wc -c
run sg_write_same -l 128 -n 16 --in=/dev/zero --xferlen=512 $disk

run sg_persist --out --register --param-sark=abc $disk
run sg_persist --in --read-keys $disk
run sg_persist --out --reserve --param-rk=abc --prout-type=3 $disk
run sg_persist --in --read-reservation $disk
run sg_persist --in --read-full-status $disk
run sg_persist --in --report-capabilities $disk
run sg_persist --out --release --param-rk=abc --prout-type=3 $disk
run sg_persist --out --clear --param-rk=abc $disk
run sg_persist --in -k $disk

run sg_reset -d $disk
run sg_turs -v $disk
