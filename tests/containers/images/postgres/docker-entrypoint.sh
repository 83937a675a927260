#!/bin/bash
# Makes the database that POSTGRES_* describe if there is none, runs the SQL files of /docker-entrypoint-initdb.d in it, and
# becomes the server.
set -e
if [ "$(id -u)" = 0 ]; then
  chown postgres "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=${POSTGRES_USER:-postgres}
  initdb --username="$user" --pwfile=<(printf '%s' "${POSTGRES_PASSWORD:?}") --auth-local=trust --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
  # Nobody connects by TCP before it is ready.
  pg_ctl -w start -o '-c listen_addresses='
  database=${POSTGRES_DB:-$user}
  [ "$database" = postgres ] || createdb -U "$user" "$database"
  for file in /docker-entrypoint-initdb.d/*.sql; do
    [ -e "$file" ] && psql -v ON_ERROR_STOP=1 -q -U "$user" -d "$database" -f "$file"
  done
  pg_ctl -w -m fast stop
fi
exec "$@"
