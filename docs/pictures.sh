#!/usr/bin/env bash
# Makes the pictures of the documentation from the results and runs of a finished demo (`make demo`): copies of its plots,
# and screenshots of its report and of MLflow's page, taken with Debian's chromium. Run it from the project's folder.
set -euo pipefail
for plot in perplexity factors search training; do
  cp "results/plots/$plot.png" "docs/$plot.png"
done
shot() {  # address, file, width, height
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=20000 \
    --window-size="$3,$4" --screenshot="docs/$2" "$1"
}
shot "file://$PWD/results/report.html" report.png 1000 2600
python -m ropewalk.run_table > work/pictures.log &
trap 'kill %1' EXIT
until grep --quiet Ctrl-C work/pictures.log; do sleep 1; done
shot "$(sed -n 's/^Runs of [^:]*: //p' work/pictures.log)" mlflow.png 1500 800
