# harness.sh STATUS|panic|hang: end in the way that is asked for, for the test of the harness.
echo "to standard output"
echo "to standard error" >&2
case $1 in
panic) echo c >/proc/sysrq-trigger ;;
hang) sleep 600 ;;
*) exit "$1" ;;
esac
