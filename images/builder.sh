# shellcheck shell=bash
# What images/build.sh and images/model.sh do alike: which builder there is, and how it builds and pushes. Sourced.
# BUILDER=buildx|podman|buildah|docker names one instead of the first one found.

fail() { echo "images/${0##*/}: $*" >&2; exit 1; }

find_builder() {
  case ${BUILDER:-} in
    "") ;;
    buildx | podman | buildah | docker) echo "$BUILDER"; return ;;
    *) fail "BUILDER is '$BUILDER'; expected buildx, podman, buildah or docker" ;;
  esac
  if command -v docker >/dev/null && docker buildx version >/dev/null 2>&1; then echo buildx
  elif command -v podman >/dev/null; then echo podman
  elif command -v buildah >/dev/null; then echo buildah
  elif command -v docker >/dev/null; then echo docker
  else fail "found neither docker buildx, podman nor buildah; expected one of them. Install one (Debian: apt-get install buildah)."
  fi
}

# build BUILDER OPTIONS...: of the folder that we are in.
build() {
  local builder=$1
  shift
  case $builder in
    buildx) docker buildx build --load "$@" . ;;
    podman) podman build --format oci "$@" . ;;
    buildah) buildah build --layers --format oci "$@" . ;;
    docker) docker build "$@" . ;;
  esac
}

# push BUILDER IMAGE
push() {
  case $1 in
    buildx | docker) docker push "$2" ;;
    *) "$1" push "$2" ;;
  esac
}
