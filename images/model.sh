#!/usr/bin/env bash
# Build the image of a checkpoint for deploy.model_image, and push it if asked.
#
#   MODEL=s3://...                            the artifact's folder; the AWS variables lead to its store
#   REPOSITORY=registry.example/team/judges   as deploy.model_image has it; the tag is the checkpoint's digest
#   PUSH=1, BUILDER=                          as in images/build.sh
#   TMPDIR=                                   a folder with room for the checkpoint; the builder keeps a copy of its own
set -euo pipefail
cd "$(dirname "$0")/.."
. images/builder.sh

[ -n "${MODEL:-}" ] || fail "MODEL is not set; expected the s3:// folder of a checkpoint, as \`reasongenrm models\` lists it"
[ -n "${REPOSITORY:-}" ] || fail "REPOSITORY is not set; expected what deploy.model_image says, such as registry.example/team/judges"
builder=$(find_builder)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
image=$("${PYTHON:-python3}" -m reasongenrm.deploy.model_image "$MODEL" "$REPOSITORY" "$folder") || exit
echo "images/model.sh: $image with $builder"
(cd "$folder" && build "$builder" --file Dockerfile --tag "$image")
if [ -n "${PUSH:-}" ]; then push "$builder" "$image"; fi
