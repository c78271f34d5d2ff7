#!/usr/bin/env bash
# Build the images, verify each one by its own self-check, and push them if asked.
#
#   IMAGES="cpu train vllm"   which ones            REGISTRY=registry/group   instead of the table's (components/images)
#   PUSH=1                    push after the check  TORCH=cuda|cpu            the build of torch in `train`
#   TORCH_INDEX=URL           where the CPU build of torch is, unless its wheel lies in images/wheels
#   PIP_INDEX_URL=URL         another package index PIP_NO_INDEX=1            all wheels lie in images/wheels: no network
#   BASE=, BUILD_BASE=        other base images     BUILD_OPTIONS="..."       more options for the build command
#   BUILDER=buildx|podman|buildah|docker            instead of the first one found
set -euo pipefail
cd "$(dirname "$0")/.."
. images/builder.sh

IMAGES=${IMAGES:-cpu train vllm}
TORCH=${TORCH:-cuda}
PYTHON=${PYTHON:-python3}

# The table's reference of an image, with REGISTRY in place of its registry.
reference() {
  local row
  row=$("$PYTHON" images/reference.py "$1") || fail "cannot read components/images/kustomization.yaml (see above)"
  if [ -n "${REGISTRY:-}" ]; then row="${REGISTRY%/}/${row##*/}"; fi
  echo "$row"
}

# As a pod runs it: no root, no capability, nothing writable but /tmp.
check() {
  local engine=docker
  if [ "$builder" = podman ]; then engine=podman; fi
  if [ "$builder" = buildah ]; then
    command -v podman >/dev/null || { echo "images/build.sh: $2 was not checked: buildah alone runs no container" >&2; return; }
    engine=podman
  fi
  "$engine" run --rm --read-only --tmpfs /tmp --user 65532:65532 --cap-drop ALL --security-opt no-new-privileges \
    --network "${RUN_NETWORK:-none}" "$2" doctor --image "$1" || fail "$2 does not pass its self-check (above)"
}

for name in $IMAGES; do
  [ -f "images/$name/Dockerfile" ] || fail "IMAGES has '$name'; expected some of: cpu train vllm"
done
case $TORCH in cuda | cpu) ;; *) fail "TORCH is '$TORCH'; expected cuda or cpu" ;; esac
if [ "$TORCH" = cpu ] && [ -z "${TORCH_INDEX:-}" ] && ! compgen -G "images/wheels/torch-*" >/dev/null && [[ " $IMAGES " == *" train "* ]]; then
  fail "TORCH=cpu: found no CPU build of torch; expected its wheel in images/wheels, or TORCH_INDEX=URL (PyTorch's install page names it)"
fi
builder=$(find_builder)
revision=$(git describe --always --dirty 2>/dev/null || echo unknown)
created=$(date -u +%Y-%m-%dT%H:%M:%SZ)

for name in $IMAGES; do
  image=$(reference "$name")
  options=(--file "images/$name/Dockerfile" --tag "$image")
  options+=(--build-arg "VERSION=${image##*:}" --build-arg "REVISION=$revision" --build-arg "CREATED=$created")
  for argument in BASE BUILD_BASE PIP_INDEX_URL PIP_NO_INDEX; do
    if [ -n "${!argument:-}" ]; then options+=(--build-arg "$argument=${!argument}"); fi
  done
  if [ "$name" = train ]; then options+=(--build-arg "TORCH=$TORCH" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}"); fi
  read -ra more <<<"${BUILD_OPTIONS:-}"
  echo "images/build.sh: $image with $builder"
  build "$builder" "${options[@]}" "${more[@]}"
  check "$name" "$image"
  if [ -n "${PUSH:-}" ]; then push "$builder" "$image"; fi
done
