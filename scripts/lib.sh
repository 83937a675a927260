# shellcheck shell=bash
# Where the scripts keep things, and the versions of what they fetch.

cache=${ESSAIM_CACHE:-$HOME/.cache/essaim}
kafka_version=4.2.0
kafka_libs=$cache/kafka/$kafka_version/libs
python_env=$cache/python
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

# The newest Go there is: on PATH, or where its own archive is unpacked by custom.
go_bin() {
  command -v go || { [ -x /usr/local/go/bin/go ] && echo /usr/local/go/bin/go; }
}

# Succeeds if Go is at least 1.21, from which on it fetches the version that a module asks for.
go_is_enough() {
  local go minor
  go=$(go_bin) || return 1
  minor=$("$go" version | sed -n 's/.* go1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -ge 21 ]
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
