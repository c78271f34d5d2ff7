#!/usr/bin/env bash
# Stands in for kind, docker, kubectl, make and others on the PATH of a script under test: a real process that records its call.
#
# $STUB_FOLDER holds calls (name and arguments, 0x1f between them, 0x1e, standard input, 0x1d), rules (pattern, exit code, how
# often, file with the output, tabs between them; the first that matches "name arguments" answers) and clusters, the names
# that `kind create` and `kind delete` add and remove.
set -euo pipefail

name="${0##*/}"
line="$name${*:+ $*}"
text=
case " $line " in
*" - "* | *"=/dev/stdin "*) text="$(cat)"$'\n' ;;
esac
arguments="$(printf '\x1f%s' "$@")"
printf '%s%s\x1e%s\x1d' "$name" "${*:+$arguments}" "$text" >>"$STUB_FOLDER/calls"

number=0
while IFS=$'\t' read -r pattern code times output; do
  number=$((number + 1))
  used="$STUB_FOLDER/used-$number"
  count=0
  if [ -e "$used" ]; then count="$(<"$used")"; fi
  if [[ "$line" =~ $pattern ]] && [ "$count" -lt "$times" ]; then
    echo $((count + 1)) >"$used"
    printf '%s' "$(<"$output")"
    exit "$code"
  fi
done <"$STUB_FOLDER/rules"

case "$line" in
"kind get clusters") cat "$STUB_FOLDER/clusters" ;;
"kind create cluster --name "*) echo "$4" >"$STUB_FOLDER/clusters" ;;
"kind delete cluster "*) : >"$STUB_FOLDER/clusters" ;;
*" port-forward "*) exec tail -f /dev/null ;;
*" --dry-run=client"*) echo "kind: Made" ;;
esac
