#!/usr/bin/env bash
# make kind-e2e: the whole pipeline on the local cluster with a tiny model, to a verdict from the InferenceService.
#
# What is checked: the run SUCCEEDED; the judge's Service leads to a judge; a chat completion over HTTP (200, the OpenAI API's form);
# a judgment in both orders with a reason each. The weights are random, so no verdict is expected.
#
#   RUN_MINUTES=60   the longest that the run may take
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

python="${PYTHON_BIN:-$root/.venv/bin/python}"
service=reasongenrm
kfp_port="${KFP_PORT:-18888}"
judge_port="${JUDGE_PORT:-18080}"
scratch="$(mktemp -d)"
forwards=()
has_cluster=

at_exit() {
  local code=$? pid
  if [ "$code" -ne 0 ] && [ -n "$has_cluster" ]; then
    dump
    say "kind-e2e failed (exit code $code); pods, events and logs are above."
  fi
  for pid in ${forwards[@]+"${forwards[@]}"}; do
    kill "$pid" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap at_exit EXIT

forward() { # forward NAMESPACE SERVICE LOCAL-PORT PORT HEALTH-PATH
  local pid
  "${kubectl[@]}" -n "$1" port-forward --address 127.0.0.1 "svc/$2" "$3:$4" >"$scratch/forward-$2.log" 2>&1 &
  pid=$!
  forwards+=("$pid")
  say "waiting for $1/$2 at http://127.0.0.1:$3"
  retry 24 5 answers "$pid" "http://127.0.0.1:$3$5" || {
    cat "$scratch/forward-$2.log" >&2
    die "$1/$2 does not answer at http://127.0.0.1:$3$5. Is the port taken? KFP_PORT and JUDGE_PORT choose others."
  }
}

answers() { # answers PID URL
  kill -0 "$1" 2>/dev/null && curl -fsS --max-time 5 -o /dev/null "$2"
}

write_inputs() {
  say "inputs: a tiny model with random weights and the demo's data, into s3://$bucket/smoke-inputs"
  within 60 "${kubectl[@]}" -n $run_namespace delete job reasongenrm-smoke-inputs --ignore-not-found --wait >&2
  apply manifests/kind/smoke-inputs
  within 310 "${kubectl[@]}" -n $run_namespace wait job/reasongenrm-smoke-inputs --for=condition=complete --timeout=300s >&2 ||
    die "the inputs were not written in 300 s."
}

run_pipeline() {
  local minutes="${RUN_MINUTES:-60}" inputs="s3://$bucket/smoke-inputs" run
  run="smoke-$(date -u +%Y%m%d-%H%M%S)"
  say "run $run: submitting it"
  # Golden judgments: random weights judge nothing rightly, so the new pods must answer and no more (min_golden_agreement).
  # No GPUs: the tasks for vLLM run in the train image, which has transformers. Small requests: two judges, the one of
  # before and the new one, and deploy_kserve must all find room on two cores (tests/manifests/test_requests.py). A task
  # may use more CPU than it asks for, not more memory: 532 MiB was the most of a training, 390 of the others.
  within $((minutes * 60)) "$python" -m reasongenrm submit --host "http://127.0.0.1:$kfp_port" --namespace $run_namespace \
    --name "$run" --wait --config "$root/pipelines/configs/smoke.yaml" --store "s3://$bucket/$run" \
    --model "$inputs/model" --preferences "$inputs/preferences.jsonl" --benchmark "$inputs/benchmark.jsonl" \
    --set "resources.cpu_image=$(image cpu)" --set "resources.train_image=$(image train)" \
    --set "resources.vllm_image=$(image train)" \
    --set resources.num_accelerators=0 --set resources.num_teacher_accelerators=0 \
    --set resources.num_train_accelerators=0 --set resources.accelerator_cpu=100m \
    --set resources.accelerator_memory=640Mi --set resources.train_cpu=100m --set resources.train_memory=1Gi \
    --set resources.cpu=100m --set resources.memory=768Mi \
    --set deploy.apply=true --set "deploy.name=$service" --set deploy.runtime=reasongenrm-transformers --set deploy.server=transformers \
    --set deploy.cpu=150m --set deploy.memory=1Gi --set deploy.judge.cpu=100m --set deploy.judge.memory=384Mi \
    --set deploy.judge_secret=reasongenrm-judge --set deploy.min_golden_agreement=0 \
    --set deploy.rollout_timeout_seconds=600 >&2 || die "run $run did not succeed in $minutes min."
  say "run $run: SUCCEEDED"
}

ask_judge() {
  local base="http://127.0.0.1:$judge_port" status
  forward $serving_namespace "$service" "$judge_port" 80 /readyz
  JUDGE_API_KEY="$(secret_value $serving_namespace reasongenrm-judge JUDGE_API_KEY)"
  export JUDGE_API_KEY
  # The key goes in by a file that only we can read, not as an argument.
  (umask 077 && printf 'header = "Authorization: Bearer %s"\n' "$JUDGE_API_KEY" >"$scratch/curl.conf")
  status="$(curl -sS --max-time 120 --config "$scratch/curl.conf" -H 'Content-Type: application/json' \
    -d "{\"model\": \"$service\", \"max_tokens\": 16, \"messages\": [{\"role\": \"user\", \"content\": \"Name a river.\"}]}" \
    -o "$scratch/completion.json" -w '%{http_code}' "$base/v1/chat/completions")" || die "the judge does not answer at $base."
  [ "$status" = 200 ] || die "the judge answered HTTP $status: $(head -c 500 "$scratch/completion.json")"
  within 300 "$python" -m reasongenrm judge --url "$base" --json --max-tokens 32 \
    --question "Name a river. Write the whole answer in capital letters." --answer-a "THE NILE." --answer-b "The Nile." \
    >"$scratch/judgment.json" || die "'reasongenrm judge' failed at $base."
  "$python" -m reasongenrm.demo.smoke check "$scratch/completion.json" "$scratch/judgment.json" || die "the judge's answer has the wrong form."
}

need_timeout
need_kind
need kubectl "'make install' puts one into .venv/bin."
need curl "Debian: apt-get install curl."
[ -x "$python" ] || missing "there is no $python. Run: make install"
need_cluster
has_cluster=yes
write_inputs
forward $run_namespace ml-pipeline "$kfp_port" 8888 /apis/v2beta1/healthz
run_pipeline
ask_judge
say "the judge answers. Done."
