# shellcheck shell=bash
# The images that the files in docker/ name: pulled where a registry is reached, else made from Debian's and Maven's packages.

here=$(dirname "${BASH_SOURCE[0]}")
base=debian:bookworm-slim
# The names as compose.yaml has them: there is one place to change a version.
named() { sed -n "s|^ *image: \($1:.*\)|\1|p" "$here/../../docker/compose.yaml" | head -n 1; }
kafka=$(named apache/kafka)
postgres=$(named postgres)
prometheus=$(named prom/prometheus)

# Makes an image by the command that follows its name, unless it is there or can be pulled.
provide() {
  local image=$1
  shift
  ! "$docker" image inspect "$image" >/dev/null 2>&1 || return 0
  # Without a registry this fails at once, for want of its address.
  ! timeout 600 "$docker" pull -q "$image" >/dev/null 2>&1 || return 0
  echo "images: making $image, which cannot be pulled"
  "$@"
}

# Debian's smallest system, without what the official slim image leaves out too.
make_base() {
  local root
  root=$(mktemp -d "$data/debian.XXXXXX")
  quietly debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian
  # As in the official image: what is installed later leaves no packages, manuals or caches behind.
  cat >"$root/etc/apt/apt.conf.d/docker-clean" <<'CONF'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF
  cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<'CONF'
path-exclude /usr/share/doc/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*/*
CONF
  cat >"$root/etc/apt/sources.list" <<'CONF'
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
CONF
  tar -C "$root" -c --exclude='./usr/share/doc/*' --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*' \
    --exclude='./usr/share/man/*/*' --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./var/log/*' . | "$docker" import -c 'CMD ["bash"]' - "$base" >/dev/null
  rm -rf "$root"
}

# Kafka from the jars of the tests' own broker, and the one with its command-line tools.
make_kafka() {
  local context
  context=$(mktemp -d "$data/kafka.XXXXXX")
  cp -r "$here/images/kafka/." "$context"
  cp -r "$kafka_libs" "$context/libs"
  quietly mvn -B -q org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    "-Dartifact=org.apache.kafka:kafka-tools:$kafka_version" "-DoutputDirectory=$context/libs"
  quietly "$docker" build -t "$kafka" "$context"
  rm -rf "$context"
}

make_postgres() { quietly "$docker" build -t "$postgres" "$here/images/postgres"; }
make_prometheus() { quietly "$docker" build -t "$prometheus" "$here/images/prometheus"; }

# Essaim's image: the last stage of docker/Dockerfile, around the binary $1 instead of one that is built for an hour.
make_essaim() {
  local folder inputs
  inputs=$(cat "$1" "$here/../../docker/Dockerfile" "$here/../../.dockerignore" | sha256sum | cut -d' ' -f1)
  [ "$("$docker" image inspect -f '{{index .Config.Labels "inputs"}}' essaim:test 2>/dev/null)" != "$inputs" ] || return 0
  "$docker" image rm -f essaim:test essaim-binary:test >/dev/null 2>&1 || true
  folder=$(mktemp -d "$data/binary.XXXXXX")
  # Without debug symbols, as in the image that is shipped.
  strip -o "$folder/essaim" "$1"
  tar -C "$folder" -c --owner=0 --group=0 essaim | "$docker" import - essaim-binary:test >/dev/null
  rm -rf "$folder"
  DOCKER_BUILDKIT=1 quietly "$docker" build -f "$here/../../docker/Dockerfile" --build-arg BINARY=essaim-binary:test \
    --label "inputs=$inputs" -t essaim:test "$here/../.."
  "$docker" image rm essaim-binary:test >/dev/null
}
