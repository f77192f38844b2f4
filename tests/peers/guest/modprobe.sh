#!/bin/sh
# modprobe NAME: load a module of User Mode Linux after those that it depends on, which modules.dep lists nearest first.
set -eu
cd "/usr/lib/uml/modules/$(uname -r)"
files=
for file in $(sed -n "s,^\(.*/$1\.ko\):,\1,p" modules.dep); do
	files="$file $files"
done
[ -n "$files" ] || { echo "modprobe: no module $1" >&2; exit 1; }
for file in $files; do
	name=$(basename "$file" .ko | tr - _)
	[ -d "/sys/module/$name" ] || busybox insmod "$file"
done
