#!/usr/bin/env bash
# One conformance run with every report that there is. Reads BACKEND, and TIER, PROFILE, SHARD, SEED, EXCLUDE, REPORTS
# where they are set; writes the reports to $REPORTS, the Markdown one to the job's summary too, and `green` to the
# step's outputs. Ends as `opsocket conformance` does. Runs anywhere, also without GitHub.
set -euo pipefail

: "${BACKEND:?the backend to test, as --backend takes it}"
reports=${REPORTS:-conformance-reports}
mkdir -p "$reports"

arguments=(--backend "$BACKEND" --tier "${TIER:-default}" --seed "${SEED:-0}")
if [[ -n ${PROFILE:-} ]]; then arguments+=(--profile "$PROFILE"); fi
if [[ -n ${SHARD:-} ]]; then arguments+=(--shard "$SHARD"); fi
if [[ -n ${EXCLUDE:-} ]]; then arguments+=(--exclude "$EXCLUDE"); fi
known=$(opsocket conformance --help) # the opsocket under test may be older than this action
for report in json junit.xml markdown.md html badge.svg; do
  if [[ $known == *"--${report%%.*} "* ]]; then
    arguments+=("--${report%%.*}" "$reports/conformance.${report##*.}")
  fi
done

opsocket backends
status=0
opsocket conformance "${arguments[@]}" || status=$?

if [[ -n ${GITHUB_STEP_SUMMARY:-} && -s $reports/conformance.md ]]; then
  cat "$reports/conformance.md" >>"$GITHUB_STEP_SUMMARY"
fi
if [[ -n ${GITHUB_OUTPUT:-} ]]; then
  if ((status == 0)); then echo "green=true"; else echo "green=false"; fi >>"$GITHUB_OUTPUT"
fi
exit "$status"
