# What up.sh, e2e.sh and down.sh share: names, messages with elapsed time, requirements, time limits, retries. Sourced.
# shellcheck shell=bash disable=SC2034 # names for the scripts that source this

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
# shellcheck source=manifests/kind/versions.env
source "$here/versions.env"

cluster="${KIND_CLUSTER:-reasongenrm}"
run_namespace=kubeflow
serving_namespace=reasongenrm
bucket=reasongenrm
# The object store of the kind overlay (addons/object-store), as pods reach it.
store_endpoint=http://reasongenrm-object-store.reasongenrm.svc:8333
# `make install` puts a kubectl into .venv/bin; the machine's own comes first.
PATH="$PATH:$root/.venv/bin"
# Never another cluster than ours, whatever the current context is.
kubectl=(kubectl --context "kind-$cluster")

say() { # progress, with the time since the script began
  printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2
}

die() { # end with a message; exit code 1
  say "failed: $*"
  exit 1
}

missing() { # end because the machine lacks something; exit code 2
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

need() { # need COMMAND HOW-TO-GET-IT
  command -v "$1" >/dev/null || missing "$1 is not installed. $2"
}

need_docker() {
  need docker "Install Docker Engine (https://docs.docker.com/engine/install) or Docker Desktop."
  timeout 30 docker info >/dev/null 2>&1 ||
    missing "the Docker daemon does not answer ('docker info' fails). Start it, or join the group docker."
}

need_kind() {
  local found
  need kind "Get $KIND_VERSION: https://github.com/kubernetes-sigs/kind/releases/tag/$KIND_VERSION (one binary, onto the PATH)."
  found="$(timeout 30 kind version)" # kind v0.30.0 go1.24.6 linux/amd64
  case " $found " in
  *" $KIND_VERSION "*) ;;
  *) missing "'$found' is installed; expected kind $KIND_VERSION, which the node image was built for. Get it: https://github.com/kubernetes-sigs/kind/releases/tag/$KIND_VERSION" ;;
  esac
}

need_timeout() {
  need timeout "It is part of coreutils (macOS: brew install coreutils)."
}

need_cluster() {
  timeout 30 kind get clusters 2>/dev/null | grep -qx "$cluster" ||
    missing "there is no kind cluster '$cluster'. Run: make kind-up"
}

within() { # within SECONDS COMMAND...: for at most SECONDS; 124 is timeout's own exit code
  local seconds="$1" code=0
  shift
  timeout --kill-after=10 "$seconds" "$@" || code=$?
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
    say "no end after $seconds s: $*"
  fi
  return "$code"
}

retry() { # retry TIMES PAUSE COMMAND...: until it succeeds; a webhook refuses connections for some seconds after its rollout
  local times="$1" pause="$2" attempt=1
  shift 2
  until "$@"; do
    if [ "$attempt" -ge "$times" ]; then
      say "$times attempts failed: $*"
      return 1
    fi
    say "attempt $attempt of $times failed; again in $pause s"
    attempt=$((attempt + 1))
    sleep "$pause"
  done
}

apply() { # apply FOLDER [OPTION...]: a kustomization of this repository
  within 180 "${kubectl[@]}" apply -k "$root/$1" "${@:2}" >&2
}

image() { # image cpu|train|vllm: its reference, from the one table (components/images)
  awk -v name="reasongenrm-$1" '
    $1 == "-" { found = $3 == name }
    found && $1 == "newName:" { registry = $2 }
    found && $1 == "newTag:" { print registry ":" $2; exit }' "$root/components/images/kustomization.yaml"
}

rolled_out() { # rolled_out NAMESPACE SECONDS NAME...: all of these (deployments, or KIND/NAME), or a message that says which not
  local namespace="$1" seconds="$2" name
  shift 2
  for name in "$@"; do
    case "$name" in */*) ;; *) name="deployment/$name" ;; esac
    say "waiting for $name in $namespace"
    within $((seconds + 10)) "${kubectl[@]}" -n "$namespace" rollout status "$name" --timeout="${seconds}s" >&2 ||
      die "$name in $namespace did not become ready in $seconds s."
  done
}

secret_value() { # secret_value NAMESPACE NAME KEY: empty if it is not there
  within 30 "${kubectl[@]}" -n "$1" get secret "$2" --ignore-not-found -o "jsonpath={.data.$3}" | base64 -d
}

dump() { # what there is to read after a failure: pods, events, and the ends of the logs of pods that are not well
  local pods namespace name ready state
  printf '\n===== pods =====\n' >&2
  within 30 "${kubectl[@]}" get pods -A -o wide >&2 || true
  printf '\n===== last events =====\n' >&2
  within 30 "${kubectl[@]}" get events -A --sort-by=.lastTimestamp 2>&1 | tail -n 40 >&2 || true
  printf '\n===== InferenceServices and TrainJobs =====\n' >&2
  within 30 "${kubectl[@]}" -n "$serving_namespace" get inferenceservices.serving.kserve.io -o yaml 2>&1 | tail -n 120 >&2 || true
  pods="$(within 30 "${kubectl[@]}" get pods -A --no-headers 2>/dev/null || true)"
  while read -r namespace name ready state _; do
    case "$state:${ready%/*}=${ready#*/}" in
    Completed:* | Succeeded:*) continue ;;
    Running:*) [ "${ready%/*}" = "${ready#*/}" ] && continue ;;
    '':*) continue ;;
    esac
    printf '\n===== %s/%s: %s, %s ready =====\n' "$namespace" "$name" "$state" "$ready" >&2
    within 30 "${kubectl[@]}" -n "$namespace" describe pod "$name" 2>&1 | tail -n 25 >&2 || true
    within 30 "${kubectl[@]}" -n "$namespace" logs "$name" --all-containers --prefix --tail=40 >&2 || true
  done <<<"$pods"
}
