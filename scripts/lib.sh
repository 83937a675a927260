# shellcheck shell=bash
# Where the scripts keep things, and the versions of what they fetch.

cache=${ESSAIM_CACHE:-$HOME/.cache/essaim}
kafka_version=4.2.0
kafka_libs=$cache/kafka/$kafka_version/libs
python_env=$cache/python
# Go as a Python package, for machines whose distribution has none that is new enough.
go_version=1.24.11
go_packaged=$cache/tools/go-$go_version
# The last one that stands on a plain PostgreSQL.
ferretdb_version=v1.24.0
ferretdb=$cache/tools/bin/ferretdb-$ferretdb_version

# The folder of PostgreSQL's server programs, newest version last; empty if there is none.
# Debian keeps them off PATH because several versions may be installed side by side.
pg_bin() {
  local newest
  newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -V | tail -n 1)
  if [ -x "$newest" ]; then
    dirname "$newest"
  elif command -v initdb >/dev/null && command -v pg_ctl >/dev/null; then
    dirname "$(command -v initdb)"
  fi
}

# Succeeds if `java` is at least 17, which Kafka's broker needs.
java_is_enough() {
  local major
  command -v java >/dev/null || return 1
  major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${major:-0}" -ge 17 ]
}

# The first Go of at least 1.21, from which on it fetches the version that a module asks for: on PATH, where its own
# archive is unpacked by custom, or where scripts/setup puts one.
go_bin() {
  local go minor
  for go in "$(command -v go)" /usr/local/go/bin/go "$go_packaged/go/bin/go"; do
    [ -x "$go" ] || continue
    minor=$("$go" version | sed -n 's/.* go1\.\([0-9]*\).*/\1/p')
    if [ "${minor:-0}" -ge 21 ]; then
      echo "$go"
      return
    fi
  done
  return 1
}

# Runs a command quietly; if it fails, prints what it said.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [ "$status" -eq 0 ] || cat "$log" >&2
  rm -f "$log"
  return "$status"
}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}
