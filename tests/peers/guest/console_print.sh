# console_print.sh BYTES: print so many bytes on the console.
set -eu
. "$(dirname "$0")/console_ports.sh"
await_console
stty -F /dev/hvc0 raw -echo
head -c "$1" /dev/zero >/dev/hvc0
echo "printed: $1"
