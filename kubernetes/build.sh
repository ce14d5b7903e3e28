#!/bin/bash
# Builds the programs of Kubernetes into a directory of the cache, unless it has them, and prints the directory. They are one
# file, linked once, with a name for each (programs/main.go). The first time takes half an hour on two processors.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/programs" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/kubernetes
names=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)

cd "$here"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
IFS=. read -r major minor _ <<<"${version#v}"
stamp=k8s.io/component-base/version
build=(go build -trimpath -buildvcs=false -tags providerless
	-ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor")

key=$({ go version && echo "${names[@]}" "${build[@]}" && cat go.mod go.sum main.go; } | sha256sum | cut -c -20)
dir=$cache/$key
if [ ! -e "$dir" ]; then
	echo "building Kubernetes $version into $dir" >&2
	mkdir -p "$cache"
	unfinished=$(mktemp -d "$cache/building-XXXXXX")
	trap 'rm -rf "$unfinished"' EXIT
	CGO_ENABLED=0 "${build[@]}" -o "$unfinished/kubernetes" .
	for name in "${names[@]}"; do
		ln -s kubernetes "$unfinished/$name"
	done
	chmod 755 "$unfinished"
	mv -T "$unfinished" "$dir" || [ -e "$dir" ] # another run was quicker
fi
echo "$dir"
