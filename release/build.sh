#!/bin/sh
# Builds dist/: sdist, wheel, and the SBOM of what the wheel installs. `make release` calls it in the root folder.
set -eu

python=${PYTHON:-python3}
work=build/release
version=$("$python" release/sbom.py version)
sbom=dist/sse-gateway-$version.cdx.json
# The same sources give the same files.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

rm -rf "$work" dist
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --disable-pip-version-check --requirement release/requirements.txt
"$work/tools/bin/python" -m build --outdir dist .

# An environment of what a user gets, and nothing else, not even pip. With Kafka's client, as the image has it.
"$python" -m venv --without-pip "$work/runtime"
wheel=$(ls dist/*.whl)
"$work/tools/bin/python" -m pip --python "$work/runtime/bin/python" install --quiet --disable-pip-version-check "$wheel[kafka]"
rm "$work"/runtime/lib/python*/site-packages/sse_gateway-*.dist-info/direct_url.json # a path of this machine

"$python" release/sbom.py project > "$work/pyproject.toml" # the root of the SBOM, and what it needs
"$work/tools/bin/cyclonedx-py" environment --pyproject "$work/pyproject.toml" --mc-type application \
  --output-reproducible --output-file "$sbom" "$work/runtime/bin/python"
"$python" release/sbom.py check "$sbom"
