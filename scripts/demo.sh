#!/bin/sh
# The main job, end to end: what is plugged in, who runs what, a real model speaking, and a first proof that it is right.
set -eu
cd "$(dirname "$0")/.."
opsocket=.venv/bin/opsocket
backend=${BACKEND:-cpu}

printf '\n== Backends on this machine, and why each absent one is absent ==\n'
$opsocket backends

printf '\n== SmolLM2-135M-Instruct (Q4_1 GGUF) through the operator interface on %s ==\n' "$backend"
$opsocket generate --model smollm2 --backend "$backend" --placement --max-tokens 96 \
  "What is the capital of France, and what is it known for? Answer in two sentences."

printf '\n== Conformance, smoke tier ==\n'
$opsocket conformance --backend "$backend" --tier smoke
