for i in $(seq 50); do [ -c /dev/hwrng ] && break; sleep 0.1; done
cat /sys/class/misc/hw_random/rng_current; head -c 64 /dev/hwrng | od -An -tx1
