#!/usr/bin/env bash
# Lets the fuzz targets loose, each for a while: fuzz/run.sh SECONDS [TARGET…]
#
# Each begins with the seeds in fuzz/seeds/TARGET, keeps what it finds in fuzz/corpus/TARGET (not in git), and ends with a
# line: runs, edges covered. An input that crashes, hangs for 20 s or needs more than 2 GiB fails the run; it stays in
# fuzz/artifacts/TARGET.
#
# The seeds are the fewest inputs that reach every edge that long runs have found. When a handler has changed much:
#   cargo fuzz run TARGET fuzz/seeds/NEW fuzz/corpus/TARGET -- -set_cover_merge=1 -use_counters=0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:?seconds per target}
shift
root=$PWD/target/tools

if ! command -v cargo-fuzz >/dev/null && [[ ! -x $root/bin/cargo-fuzz ]]; then
	echo '==> installing cargo-fuzz'
	cargo install --quiet --root "$root" --locked cargo-fuzz --version 0.13.2
fi
export PATH=$root/bin:$PATH

# The sanitizers' flags are unstable ones, which a stable compiler takes when it is told to; and a sanitizer does not work
# in a static program, which .cargo/config.toml asks for.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Ctarget-feature=-crt-static'

targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || mapfile -t targets < <(cargo fuzz list --fuzz-dir fuzz)

echo "==> building ${#targets[@]} fuzz targets"
cargo fuzz build --fuzz-dir fuzz

failed=()
for target in "${targets[@]}"; do
	mkdir -p "fuzz/corpus/$target"
	seeds=()
	[[ ! -d fuzz/seeds/$target ]] || seeds=("fuzz/seeds/$target")
	dictionary=()
	[[ ! -f fuzz/dictionaries/$target.dict ]] || dictionary=("-dict=fuzz/dictionaries/$target.dict")
	log=$(mktemp)
	printf '==> %s, %d s: ' "$target" "$seconds"
	code=0
	cargo fuzz run --fuzz-dir fuzz "$target" "fuzz/corpus/$target" "${seeds[@]}" -- \
		"${dictionary[@]}" \
		-max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1 || code=$?
	if [[ $code -eq 0 ]]; then
		edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)
		all=$(grep -o '([0-9]* inline 8-bit counters)' "$log" | head -n 1 | tr -dc '0-9 ' | cut -d' ' -f1)
		runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
		echo "$runs runs, ${edges:-0} of ${all:-?} edges of the binary, $(find "fuzz/corpus/$target" -type f | wc -l) inputs kept"
	else
		echo 'FAILED'
		tail -n 60 "$log"
		failed+=("$target")
	fi
	rm -f "$log"
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}; the inputs are in fuzz/artifacts" >&2; exit 1; }
