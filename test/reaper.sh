#!/bin/sh
# Ends what a run of tests has left behind: every process that has RUN=ID in its environment.
# Usage: reaper.sh NAME=VALUE      Waits for the end of its input, which is the run's end however that comes about.
trap '' INT TERM HUP
cat > /dev/null
for signal in TERM KILL; do
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [ "$pid" = $$ ] && continue
    if tr '\0' '\n' 2> /dev/null < "$process/environ" | grep -qxF "$1"; then kill -$signal "$pid" 2> /dev/null; left=1; fi
  done
  [ -n "$left" ] || exit 0
  [ $signal = KILL ] || sleep 2
done
