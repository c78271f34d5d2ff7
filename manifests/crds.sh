#!/usr/bin/env bash
# make crds: the CustomResourceDefinitions that the tests validate against, at pinned commits, into build/crds (or the folder named).
set -euo pipefail
target="${1:-build/crds}"
mkdir -p "$target"

# REPOSITORY COMMIT FOLDER FILE...
fetch() {
  local repository="$1" commit="$2" folder="$3" file
  shift 3
  for file in "$@"; do
    echo "$repository $file" >&2
    curl --fail --silent --show-error --location --retry 3 --output "$target/${file##*/}" \
      "https://raw.githubusercontent.com/$repository/$commit/$folder/$file"
  done
}

kserve=aaac4e294dae2c7b1aa1886447793f3aa1c30912 # 0.20.0 and later
fetch kserve/kserve $kserve config/crd/full serving.kserve.io_{clusterservingruntimes,inferencegraphs,inferenceservices,servingruntimes}.yaml
fetch kserve/kserve $kserve config/crd/full/clusterstoragecontainer serving.kserve.io_clusterstoragecontainers.yaml
fetch kserve/kserve $kserve config/crd/full/localmodel serving.kserve.io_{localmodelcaches,localmodelnodegroups}.yaml
fetch kubeflow/trainer 8c0f5059bd51ec3ba6d6a6a7b2e1471de7bc13b3 manifests/base/crds trainer.kubeflow.org_{clustertrainingruntimes,trainingruntimes,trainjobs}.yaml
fetch kubeflow/pipelines 7b70c7b95f6832772efd6fd0029a4024491a0f44 manifests/kustomize/base/crds pipelines.kubeflow.org_{pipelines,pipelineversions}.yaml
fetch kedacore/keda 8b4f083ca8c8c2baf8477e322bd4d16ac4dfa09a config/crd/bases keda.sh_{scaledobjects,triggerauthentications}.yaml
fetch kubernetes-sigs/kueue ff69552e79 config/components/crd/bases kueue.x-k8s.io_{clusterqueues,localqueues,resourceflavors}.yaml
fetch prometheus-operator/prometheus-operator 6adcebc50 example/prometheus-operator-crd monitoring.coreos.com_{podmonitors,prometheusrules,servicemonitors}.yaml
