#!/usr/bin/env bash
# The pictures of the documentation, from the results and runs of a demo that has ended (`make demo`): its plots, and
# screenshots of its report and of MLflow's page by Debian's chromium. Run from the project's folder.
set -euo pipefail
for plot in perplexity factors search training; do
  cp "results/plots/$plot.png" "docs/$plot.png"
done
shot() {  # address, file, width, height
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=20000 \
    --window-size="$3,$4" --screenshot="docs/$2" "$1"
}
shot "file://$PWD/results/report.html" report.png 1000 2600
mlflow ui --host 127.0.0.1 --port 5077 --backend-store-uri "sqlite:///$PWD/mlflow.db" &
trap 'kill %1' EXIT
until curl --silent --output /dev/null http://127.0.0.1:5077/; do sleep 1; done
shot 'http://127.0.0.1:5077/#/experiments/1/runs' mlflow.png 1300 800
