#!/bin/bash
# Fetches the kernel that Debian has built for virtual machines (linux-image-cloud-amd64) and makes of it what stands in for
# boxlite's own kernels until those are compiled: vmlinux-lean and vmlinux-net, which are the same file. Its modules go
# into an initramfs of its own. README.md ("Debian's kernel") says what it lacks.
set -euo pipefail

usage() {
	cat <<-END
	usage: kernels/prebuilt.sh --out DIR

	  --out  directory for vmlinux-lean, vmlinux-net and modules/
	END
}

die() {
	echo "kernels/prebuilt.sh: $*" >&2
	exit 1
}

package=linux-image-cloud-amd64
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/kernels

out=''
while [ $# -gt 0 ]; do
	case $1 in
	--out)
		[ $# -ge 2 ] || die "$1 needs a value"
		out=$2
		shift 2
		;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		usage >&2
		die "unknown argument \"$1\""
		;;
	esac
done
[ -n "$out" ] || {
	usage >&2
	die "--out is missing"
}

# candidate PACKAGE prints the version that apt would install.
candidate() { apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

# find_image sets image and version: the package that the metapackage stands for.
find_image() {
	[ -n "$(candidate "$package")" ] || apt-get update -qq
	image=$(apt-cache depends "$package" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
	[ -n "$image" ] || die "apt-get knows no $package"
	version=$(candidate "$image")
}

# unpack_kernel VMLINUZ VMLINUX takes the ELF file out of a bzImage (Documentation/x86/boot.rst of Linux: setup_sects,
# payload_offset, payload_length). The last four bytes of the payload are the length of what is packed.
unpack_kernel() {
	local sectors start length
	number() { od -An -t"u$3" -j"$2" -N"$3" "$1" | tr -d ' '; }
	sectors=$(number "$1" $((0x1f1)) 1)
	start=$(((sectors + 1) * 512 + $(number "$1" $((0x248)) 4)))
	length=$(($(number "$1" $((0x24c)) 4) - 4))
	local unpack
	case $(od -An -tx1 -j"$start" -N4 "$1" | tr -d ' ') in
	02214c18) unpack=lz4 ;;
	28b52ffd) unpack=zstd ;;
	fd377a58) unpack=xz ;;
	*) die "$1: packed in an unknown way" ;;
	esac
	dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$length" status=none | "$unpack" -dc >"$2" || die "$1: $unpack cannot unpack it"
}

# fetch downloads the package into the directory. What apt knows may be older than what the mirror has.
fetch() {
	download() { (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "$image=$version"); }
	download "$1" 2>/dev/null || { apt-get update -qq && find_image && download "$1"; } || die "apt-get download $image=$version"
}

find_image
dir=$cache/prebuilt-${image}_$version
if [ ! -e "$dir" ]; then
	echo "fetching $image $version"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/prebuilt.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	chmod 755 "$tmp"
	fetch "$tmp"
	dir=$cache/prebuilt-${image}_$version
	dpkg-deb -x "$tmp"/*.deb "$tmp/files"
	unpack_kernel "$tmp"/files/boot/vmlinuz-* "$tmp/vmlinux"
	# From Debian 13 on modules are compressed. Where /usr is merged in packages they are below it.
	find "$tmp/files" -name '*.ko.xz' -exec xz -d {} +
	mkdir "$tmp/modules"
	find "$tmp/files" -name '*.ko' -exec mv -t "$tmp/modules" {} +
	rm -rf "$tmp/files" "$tmp"/*.deb
	mv -T "$tmp" "$dir" 2>/dev/null || [ -e "$dir/vmlinux" ] # another of us was quicker
fi
mkdir -p "$out"
ln -sfnT "$dir/modules" "$out/modules"
for name in lean net; do
	cmp -s "$dir/vmlinux" "$out/vmlinux-$name" || cp "$dir/vmlinux" "$out/vmlinux-$name"
done
echo "lean, net: $image $version, $(($(stat -c %s "$dir/vmlinux") / 1024)) KiB"
