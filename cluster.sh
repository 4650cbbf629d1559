#!/bin/sh
# Three nodes of one volume on this machine, each with a mount of its own.
#
#   ./cluster.sh        starts all three; ^C ends them and unmounts. Run again it
#                       goes on with the data
#   ./cluster.sh 2      starts the second alone, as after a kill -9
#
# `make cluster` builds the programs first. BIN says where they are, CLUSTER
# where the data are, MOUNTPOINT what the mounts are called, with 1, 2 and 3
# behind it.
set -u
cd "$(dirname "$0")" || exit
: "${BIN:=bin}" "${CLUSTER:=gears-cluster}" "${MOUNTPOINT:=gears}"

# node runs the node $1 in place of this shell. A mount that a killed one has
# left there, which mkdir can't look at, it replaces by itself.
node() {
	mkdir -p "$CLUSTER" "$MOUNTPOINT$1" 2> /dev/null
	join=
	[ "$1" = 1 ] || join="--join unix:$CLUSTER/n1.sock,unix:$CLUSTER/n2.sock,unix:$CLUSTER/n3.sock"
	exec "$BIN/gearsfsd" --name "n$1" --data "$CLUSTER/n$1" --listen "unix:$CLUSTER/n$1.sock" --mount "$MOUNTPOINT$1" $join
}

# start starts the node $1 behind and returns when it is ready.
start() {
	mkdir -p "$CLUSTER" || exit
	: > "$CLUSTER/n$1.log" || exit
	(node "$1") 2> "$CLUSTER/n$1.log" &
	echo $! > "$CLUSTER/n$1.pid"
	until grep -q '^gearsfsd: ready' "$CLUSTER/n$1.log"; do
		kill -0 "$(cat "$CLUSTER/n$1.pid")" 2> /dev/null || {
			echo "n$1 did not start:" >&2
			cat "$CLUSTER/n$1.log" >&2
			return 1
		}
		sleep 0.1
	done
	echo "n$1 is mounted on $MOUNTPOINT$1"
}

# finish ends what runs, also what was started alone, and waits for it; each
# node unmounts.
finish() {
	trap '' INT TERM
	for pid in $(cat "$CLUSTER"/n?.pid 2> /dev/null); do
		kill -TERM "$pid" 2> /dev/null
	done
	wait
	for pid in $(cat "$CLUSTER"/n?.pid 2> /dev/null); do
		while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
	done
	rm -f "$CLUSTER"/n?.pid
	exit "$1"
}

case ${1-} in
[123])
	mkdir -p "$CLUSTER" || exit
	echo $$ > "$CLUSTER/n$1.pid"
	node "$1"
	;;
?*)
	echo "usage: $0 [1|2|3]" >&2
	exit 2
	;;
esac

trap 'finish 0' INT TERM
for n in 1 2 3; do
	start $n || finish 1
done
echo
echo "To try in another terminal (^C here ends all and unmounts):"
echo
sed -n '/^<!-- cluster tour -->/,/^<!-- end -->/s/^    //p' README.md | sed "s|^cd gearsfs|cd '$PWD'|"
wait
finish 0
