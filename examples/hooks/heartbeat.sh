#!/bin/sh
# on_success: calls a URL, kept in a file since it is a secret, of a service that raises an alarm when it is not called.
#   on_success = ["/etc/dcp2hf/hooks/heartbeat.sh", "/etc/dcp2hf/heartbeat-url"]
set -eu
# By stdin, so that no list of processes shows it.
printf 'url = "%s"\n' "$(cat "$1")" | curl --config - --fail --silent --show-error --max-time 20 --output /dev/null
