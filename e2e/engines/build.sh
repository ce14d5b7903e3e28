#!/bin/bash
# Builds engines newer than Debian's into a directory of the cache, unless it has them, and prints the directory: dockerd,
# containerd and runc of go.mod, with their clients and helpers.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/engines

version_of() { go list -m -f '{{.Version}}' "$1"; }
cli=$(version_of github.com/docker/cli)
moby=$(version_of github.com/moby/moby/v2)
containerd=$(version_of github.com/containerd/containerd/v2)
runc=$(version_of github.com/opencontainers/runc)
cli=${cli#v} cli=${cli%+incompatible}
# dockerd's module counts on its own; its major version is the client's.
build=(go build -trimpath -buildvcs=false
	-gcflags github.com/docker/cli/...=-lang=go1.24 # it has no go.mod, where the language would be
	-ldflags "-s -w
	-X github.com/moby/moby/v2/dockerversion.Version=${cli%%.*}.0.0+$moby
	-X github.com/docker/cli/cli/version.Version=$cli
	-X github.com/containerd/containerd/v2/version.Version=$containerd")

key=$({ go version && echo "${build[@]}" && cat go.mod go.sum; } | sha256sum | cut -c -20)
dir=$cache/$key
if [ ! -e "$dir" ]; then
	echo "building dockerd $moby, docker $cli, containerd $containerd, runc $runc into $dir" >&2
	mkdir -p "$cache"
	unfinished=$(mktemp -d "$cache/building-XXXXXX")
	trap 'rm -rf "$unfinished"' EXIT
	mapfile -t others < <(go list tool | grep -v -x github.com/opencontainers/runc)
	CGO_ENABLED=0 "${build[@]}" -o "$unfinished/" "${others[@]}"
	CGO_ENABLED=1 "${build[@]}" -tags seccomp -o "$unfinished/" github.com/opencontainers/runc # parts of it are C
	chmod 755 "$unfinished"
	mv -T "$unfinished" "$dir" || [ -e "$dir" ] # another run was quicker
fi
echo "$dir"
