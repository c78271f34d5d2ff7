#!/usr/bin/env bash
# make kind-down: remove the local cluster with everything in it. Images stay in docker. Without a cluster nothing happens.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_timeout
need_docker
need_kind
if timeout 30 kind get clusters 2>/dev/null | grep -qx "$cluster"; then
  within 180 kind delete cluster --name "$cluster" >&2 || die "kind could not remove cluster '$cluster'. Try: docker rm -f $cluster-control-plane"
  say "kind cluster '$cluster' is gone"
else
  say "there is no kind cluster '$cluster'"
fi
