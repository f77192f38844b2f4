# console_bulk.sh NAME BYTES: send random bytes to a port and receive as many, at the same time; print their checksums.
set -eu
. "$(dirname "$0")/console_ports.sh"
exec 3<>"$(port "$1")"
head -c "$2" /dev/urandom >out
echo "sent: $(sha256sum <out | cut -d' ' -f1)"
cat out >&3 &
echo "received: $(head -c "$2" <&3 | sha256sum | cut -d' ' -f1)"
wait
