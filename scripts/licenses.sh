#!/bin/bash
# Prints the licences of what is linked into boxlite and its guestinit: Go's library and the modules.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# print NAME DIR prints the licence files of a module.
print() {
	local files file
	files=$(find "$2" -maxdepth 1 -type f -iregex '.*/\(licen[cs]e\|copying\|notice\|patents\)[^/]*' | LC_ALL=C sort)
	[ -n "$files" ] || {
		echo "licenses.sh: no licence in $2" >&2
		exit 1
	}
	while IFS= read -r file; do
		printf '==== %s: %s\n\n' "$1" "${file##*/}"
		cat "$file"
		echo
	done <<<"$files"
}

print 'Go' "$(go env GOROOT)"
modules=$(go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}	{{.Dir}}{{end}}{{end}}' . ./guestinit | LC_ALL=C sort -u)
while IFS=$'\t' read -r name dir; do
	print "$name" "$dir"
done <<<"$modules"
