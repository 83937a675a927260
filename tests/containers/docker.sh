# shellcheck shell=bash
# Docker and Compose for the test: installed if they are missing, and a daemon of its own where none runs.

# What docker keeps: images, containers, volumes. Only a daemon of its own uses it.
data=$cache/containers
daemon=''

install_docker() {
  local packages=() sudo=()
  command -v dockerd >/dev/null || command -v docker >/dev/null || packages+=(docker.io)
  compose_command >/dev/null || packages+=(docker-compose)
  command -v debootstrap >/dev/null || packages+=(debootstrap)
  command -v strip >/dev/null || packages+=(binutils)
  command -v curl >/dev/null || packages+=(curl)
  command -v jq >/dev/null || packages+=(jq)
  [ ${#packages[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "missing: ${packages[*]}. Without apt-get, install them yourself"
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  echo "containers: installing ${packages[*]}"
  quietly "${sudo[@]}" apt-get update -q
  quietly "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}"
}

# The second version of Compose is a part of docker, the first one a program of its own.
compose_command() {
  if docker compose version >/dev/null 2>&1; then
    echo docker compose
  elif command -v docker-compose >/dev/null; then
    echo docker-compose
  else
    return 1
  fi
}

# A docker that builds with BuildKit, which leaves out the stages that are not needed: several may be installed.
# Up to version 22 it is in there, from 23 on it takes the plugin buildx.
find_docker() {
  local found
  while read -r found; do
    if "$found" buildx version >/dev/null 2>&1 ||
      [ "$("$found" version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1)" -lt 23 ]; then
      echo "$found"
      return
    fi
  done < <(type -ap docker)
  fail "docker here cannot build with BuildKit: install docker-buildx"
}

start_docker() {
  mkdir -p "$data"
  docker=$(find_docker)
  read -ra compose < <(compose_command)
  ! "$docker" info >/dev/null 2>&1 || return 0
  [ "$(id -u)" -eq 0 ] || fail "no docker daemon answers, and only root can start one: start it, or run this as root"
  command -v dockerd >/dev/null || fail "no docker daemon answers at ${DOCKER_HOST:-the default socket}: start it"
  export DOCKER_HOST=unix://$data/docker.sock
  # In a session of its own: Ctrl-C is for the script, which needs it to clean up.
  setsid dockerd --host "$DOCKER_HOST" --data-root "$data/data" --exec-root "$data/run" --pidfile "$data/docker.pid" \
    </dev/null >"$data/docker.log" 2>&1 &
  daemon=$!
  # It ends by itself if it cannot start.
  until "$docker" info >/dev/null 2>&1; do
    if ! kill -0 "$daemon" 2>/dev/null; then
      tail -n 20 "$data/docker.log" >&2
      fail "the docker daemon does not start; its log is $data/docker.log"
    fi
    sleep 0.2
  done
}

stop_docker() {
  [ -n "$daemon" ] || return 0
  kill "$daemon"
  wait "$daemon" || true
}
