#!/bin/sh
# A diamond of four steps, each a queue's worker, over the lines of a text:
#
#               ┌─▶ words ─▶ counted ─┐
#   lines ─▶ clean                    ├─▶ result
#               └─▶ bytes ─▶ measured ┘
#
#   examples/diamond.sh [FILE [TEXT]]      FILE as in gearsfs put; default :/diamond
#
# Prints how many words and bytes TEXT (default README.md) has without its
# carriage returns and line ends; gearsfs must be in $PATH. Kill
# whatever you like while it runs, node and machine included, and run it again:
# it goes on where it was. More machines may run the steps as well.
set -eu
dag=${1:-:/diamond} text=${2:-README.md} jobs=${JOBS:-2}

# Lines that are in the queue already are not put again; 4: it is sealed, all are.
gearsfs put "$dag" lines -l --id line --seal <"$text" || [ $? = 4 ]

pids=
step() { gearsfs each "$dag" "$@" & pids="$pids $!"; }

step lines -j "$jobs" --put "$dag" words --put "$dag" bytes --seal -- tr -d '\r'
step words -j "$jobs" --put "$dag" counted --seal -- wc -w
step bytes -j "$jobs" --put "$dag" measured --seal -- wc -c
# Any words meet any bytes here, as only sums are asked for.
step counted --and "$dag" measured -j "$jobs" --put "$dag" result --seal -- \
	sh -c 'echo $(cat "$GEARSFS_IN/0") $(cat "$GEARSFS_IN/1")'

for pid in $pids; do wait "$pid"; done
gearsfs peek "$dag" result -n all | awk '{ words += $1; bytes += $2 } END { print words, bytes }'
