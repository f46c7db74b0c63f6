#!/usr/bin/env bash
# Installs the wheel into a fresh environment of each Python, outside the checkout, and tries it:
#   benchmarks/python_versions.sh            # 3.10 3.11 3.12 3.13
#   benchmarks/python_versions.sh 3.13
# It needs uv, which fetches interpreters that are missing, a network and 8 GB of disk a version (torch with CUDA).
# What it says is a line for each version; exit status 1 where one fails.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv > /dev/null || { echo "uv is not installed: pip install uv" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Cached beside the environments, packages are linked into them, not copied; gone with them.
export UV_CACHE_DIR=${UV_CACHE_DIR:-$folder/cache}
root=$PWD
cp constraints.txt "$folder"
uv build --quiet --out-dir "$folder" .

try() {
    local python=$folder/$1/bin/python
    uv venv --quiet --python "$1" "$folder/$1" &&
    uv pip install --quiet --python "$python" --constraint "$folder/constraints.txt" "$folder"/*.whl &&
    cd "$folder" &&
    "$python" -m edgeprune doctor > "$folder/doctor-$1.txt" &&
    "$python" -m edgeprune recipes --json - | grep -q mobilenet_v3_small &&
    "$python" "$root/benchmarks/python_versions_convert.py" "$folder/files-$1"
}

failed=0
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13
for version in "$@"; do
    if (try "$version"); then
        echo "$version: installed, all that a run needs is there, a sparse file of each format written and read back"
    else
        echo "$version: FAILED"
        cat "$folder/doctor-$version.txt" 2> /dev/null || true
        failed=1
    fi
    rm -rf "${folder:?}/$version"
done
exit $failed
