#!/usr/bin/env bash
# make kind-up: a local cluster with Kubeflow Pipelines, KServe and ReasonGenRM on CPUs. Run again, it goes on or changes nothing.
#
#   TRAINER=1      also JobSet and Kubeflow Trainer, for mode: trainjob
#   SKIP_BUILD=1   take the images that docker has already
#   TORCH_INDEX=URL  where pip finds torch for CPUs, unless its wheel lies in images/wheels
#   KIND_CLUSTER   the cluster's name (reasongenrm)
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

third_party=manifests/third-party
has_cluster=

at_exit() {
  local code=$?
  if [ "$code" -ne 0 ] && [ -n "$has_cluster" ]; then
    dump
    say "kind-up failed (exit code $code). 'make kind-up' goes on from here, 'make kind-down' removes everything."
  fi
}
trap at_exit EXIT

check_machine() {
  local cpus memory disk folder min_cpus="$MIN_CPUS"
  need_timeout
  need_docker
  need_kind
  need kubectl "'make install' puts one into .venv/bin."
  need git "kubectl fetches the pinned third-party manifests with it (Debian: apt-get install git)."
  [ -z "${TRAINER:-}" ] || min_cpus="$MIN_CPUS_WITH_TRAINER"
  cpus="$(timeout 30 docker info --format '{{.NCPU}}')"
  [ "$cpus" -ge "$min_cpus" ] ||
    missing "docker has $cpus CPUs; expected $min_cpus, for which the pods ask. Give the machine, or Docker Desktop's, more."
  memory="$(timeout 30 docker info --format '{{.MemTotal}}')"
  # A machine of 6 GiB shows a little less.
  [ $((memory / 1024 / 1024 + 256)) -ge $((MIN_MEMORY_GIB * 1024)) ] ||
    missing "docker has $((memory / 1024 / 1024)) MiB of memory; expected $MIN_MEMORY_GIB GiB. Give the machine, or Docker Desktop's, more."
  if [ -z "${SKIP_BUILD:-}${TORCH_INDEX:-}" ] && ! compgen -G "$root/images/wheels/torch-*" >/dev/null; then
    missing "TORCH_INDEX is not set. Give it the package index with torch for CPUs (PyTorch's install page names it), or put its wheel into images/wheels."
  fi
  folder="$(timeout 30 docker info --format '{{.DockerRootDir}}')"
  # Docker Desktop's folder lies inside its own machine, where df does not reach.
  if [ -d "$folder" ]; then
    disk="$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')"
    [ "$disk" -ge "$MIN_DISK_GIB" ] ||
      missing "$disk GiB are free at $folder; expected $MIN_DISK_GIB GiB for images and volumes. Free some: docker system prune"
  fi
}

create_cluster() {
  if timeout 30 kind get clusters 2>/dev/null | grep -qx "$cluster"; then
    say "kind cluster '$cluster' is there"
  else
    say "kind cluster '$cluster': creating it from $NODE_IMAGE"
    within 600 kind create cluster --name "$cluster" --image "$NODE_IMAGE" --config "$here/cluster.yaml" --wait 180s >&2 ||
      die "kind could not create the cluster; its message is above, and it has removed what it made."
  fi
  has_cluster=yes
  within 60 "${kubectl[@]}" get nodes >&2 || die "the cluster does not answer; try 'make kind-down' and 'make kind-up' again."
}

load_images() {
  local name builder
  if [ -z "${SKIP_BUILD:-}" ]; then
    # Podman or buildah would build where kind does not look.
    if timeout 30 docker buildx version >/dev/null 2>&1; then builder=buildx; else builder=docker; fi
    say "images cpu and train, with torch for CPUs: building them with $builder"
    within 3600 env BUILDER="$builder" make -C "$root" --no-print-directory images IMAGES="cpu train" TORCH=cpu >&2 || die "'make images' failed."
  fi
  for name in cpu train; do
    timeout 30 docker image inspect "$(image $name)" >/dev/null 2>&1 ||
      die "docker has no image $(image $name). Leave SKIP_BUILD out, or build it: make images IMAGES=$name TORCH=cpu"
    say "loading $(image $name) into the node"
    within 900 kind load docker-image "$(image $name)" --name "$cluster" >&2 || die "kind could not load $(image $name)."
  done
}

install_cert_manager() {
  say "cert-manager"
  retry 3 5 apply $third_party/cert-manager --server-side --force-conflicts || die "cert-manager could not be applied."
  rolled_out cert-manager 300 cert-manager cert-manager-cainjector cert-manager-webhook
}

install_pipelines() {
  say "Kubeflow Pipelines"
  retry 3 5 apply $third_party/kfp/cluster-scoped || die "KFP's cluster-scoped resources could not be applied."
  within 130 "${kubectl[@]}" wait crd/applications.app.k8s.io --for=condition=established --timeout=120s >&2 ||
    die "KFP's CRD applications.app.k8s.io was not established in 120 s."
  retry 3 5 apply manifests/kind/kfp || die "KFP could not be applied."
  rolled_out $run_namespace 600 mysql # pulls the largest image, and makes its files
  rolled_out $run_namespace 600 metadata-grpc-deployment ml-pipeline
}

install_kserve() {
  say "KServe"
  # Its CRDs are too long for the annotation that a client-side apply writes.
  retry 3 5 apply $third_party/kserve/crds --server-side --force-conflicts || die "KServe's CRDs could not be applied."
  retry 12 5 apply $third_party/kserve --server-side --force-conflicts || die "KServe could not be applied."
  rolled_out kserve 300 kserve-controller-manager
  retry 12 5 apply $third_party/kserve/runtimes --server-side --force-conflicts || die "KServe's runtimes could not be applied."
}

install_trainer() {
  say "JobSet and Kubeflow Trainer"
  retry 3 5 apply $third_party/jobset --server-side --force-conflicts || die "JobSet could not be applied."
  rolled_out jobset-system 300 jobset-controller-manager
  retry 12 5 apply $third_party/trainer --server-side --force-conflicts || die "Kubeflow Trainer could not be applied."
  rolled_out kubeflow-system 300 kubeflow-trainer-controller-manager
}

random_word() { # random_word LENGTH: characters that need no quoting anywhere
  head -c 64 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' | head -c "$1"
}

make_secret() { # make_secret NAMESPACE NAME, KEY=VALUE lines on stdin: no value is an argument that others can read
  "${kubectl[@]}" -n "$1" create secret generic "$2" --from-env-file=/dev/stdin --dry-run=client -o yaml |
    within 30 "${kubectl[@]}" apply --server-side --force-conflicts -f - >&2
}

make_namespaces() {
  local namespace
  for namespace in $run_namespace $serving_namespace; do
    "${kubectl[@]}" create namespace "$namespace" --dry-run=client -o yaml |
      within 30 "${kubectl[@]}" apply --server-side -f - >&2
  done
}

create_secrets() {
  local key_id key token judge namespace
  key_id="$(secret_value $run_namespace reasongenrm-s3 AWS_ACCESS_KEY_ID)"
  key="$(secret_value $run_namespace reasongenrm-s3 AWS_SECRET_ACCESS_KEY)"
  token="$(secret_value $run_namespace reasongenrm-judge VLLM_API_KEY)"
  judge="$(secret_value $run_namespace reasongenrm-judge JUDGE_API_KEY)"
  say "secrets: reasongenrm-s3 and reasongenrm-judge, $([ -n "$key_id" ] && echo "with the values that are there" || echo "generated")"
  : "${key_id:=$(random_word 20)}" "${key:=$(random_word 40)}" "${token:=$(random_word 40)}" "${judge:=$(random_word 40)}"
  for namespace in $run_namespace $serving_namespace; do
    make_secret "$namespace" reasongenrm-s3 <<EOF
AWS_ACCESS_KEY_ID=$key_id
AWS_SECRET_ACCESS_KEY=$key
AWS_ENDPOINT_URL=$store_endpoint
AWS_REGION=us-east-1
EOF
    make_secret "$namespace" reasongenrm-judge <<EOF
VLLM_API_KEY=$token
JUDGE_API_KEY=$judge
EOF
  done
  # The object store of the overlay knows the same account, and no other.
  "${kubectl[@]}" -n $serving_namespace create secret generic reasongenrm-object-store --from-file=s3.json=/dev/stdin \
    --dry-run=client -o yaml <<EOF | within 30 "${kubectl[@]}" apply --server-side --force-conflicts -f - >&2
{"identities": [{"name": "reasongenrm", "credentials": [{"accessKey": "$key_id", "secretKey": "$key"}], "actions": ["Admin"]}]}
EOF
  # What KServe's storage initializer reads in addition to the keys.
  within 30 "${kubectl[@]}" -n $serving_namespace annotate --overwrite secret reasongenrm-s3 \
    "serving.kserve.io/s3-endpoint=${store_endpoint#http://}" serving.kserve.io/s3-usehttps=0 \
    serving.kserve.io/s3-region=us-east-1 serving.kserve.io/s3-useanoncredential=false >&2
}

install_reasongenrm() {
  local overlay=manifests/overlays/kind${TRAINER:+-with-trainer}
  say "ReasonGenRM: $overlay"
  # A Job's pods cannot be changed: one of an earlier version would be in the way.
  within 60 "${kubectl[@]}" -n $run_namespace delete job reasongenrm-bucket --ignore-not-found --wait >&2
  retry 12 5 apply "$overlay" --server-side --field-manager=reasongenrm --force-conflicts || die "$overlay could not be applied."
}

wait_for_store() {
  rolled_out $serving_namespace 300 statefulset/reasongenrm-object-store
  say "waiting for the bucket"
  # It fails until the object store is up, and Kubernetes doubles the pause after each failure.
  within 610 "${kubectl[@]}" -n $run_namespace wait job/reasongenrm-bucket --for=condition=complete --timeout=600s >&2 ||
    die "the bucket was not made in 600 s."
}

check_machine
create_cluster
load_images
install_cert_manager
install_pipelines
install_kserve
[ -z "${TRAINER:-}" ] || install_trainer
make_namespaces
create_secrets
install_reasongenrm
wait_for_store
say "ready. Next: make kind-e2e. The KFP UI: kubectl --context kind-$cluster -n $run_namespace port-forward svc/ml-pipeline-ui 8080:80"
