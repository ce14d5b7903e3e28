package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// overlayScript works on an overlay whose upper layer is in a directory, and prints what it saw. Twice, as the second mount
// finds what the first has left in the upper layer.
const overlayScript = `
cd $1 && rm -rf lower upper work merged && mkdir -p lower/dir/sub lower/gone lower/old upper work merged
echo lower >lower/file; echo lower >lower/dir/sub/file; echo lower >lower/removed; echo lower >lower/gone/file; echo lower >lower/old/file; ln lower/file lower/linked
touch -d @1000000000 lower/file && chown 5:6 lower/file && chmod 4751 lower/file
layers=lowerdir=lower,upperdir=upper,workdir=work
mount -t overlay -o $layers overlay merged && cd merged || exit
rm removed && rm -r gone && mkdir gone && mv old new 2>/dev/null || { cp -a old new && rm -r old; }
chmod 4750 file && mv file moved && mkdir made && echo text >made/a && ln made/a made/b && mv made made2
echo more >>dir/sub/file && rm made2/a && ln -s made2/b symlink && mkfifo fifo && probe xattr moved
probe tmpfile dir >/tmp/tmpfile; cp /bin/busybox busybox && ./busybox true && echo "run=ok"
exec 3<>held && rm held && echo still >&3 && echo "held=$(ls held 2>/dev/null)"; exec 3>&-
cd .. && umount merged
echo "whiteout=$(stat -c '%F %t:%T' upper/removed upper/file | uniq)"
mount -t overlay -o $layers overlay merged && cd merged
echo "names=$(find . | sort | xargs)"
echo "gone=$(ls gone) removed=$(ls removed file old 2>/dev/null)"
echo "moved=$(stat -c '%a %u:%g %Y' moved) $(cat moved)"
echo "texts=$(cat dir/sub/file new/file made2/b symlink dir/named | xargs) $(stat -c %h made2/b)"
probe xattr moved 2>&1 | sed 's/^/xattr=/'
cd .. && umount merged
`

// An upper layer on a volume is as good as one in memory: whiteouts, opaque directories, attributes, renames, links.
func TestOverlayOnVolume(t *testing.T) {
	eachVM(t, func(e *env) {
		id := e.start("--privileged", "-v", "/volume", "--tmpfs", "/memory:exec", "busybox", "sleep", "1000")
		memory := parseReport(e.exec(id, "sh", "-c", overlayScript, "sh", "/memory"))
		volume := parseReport(e.exec(id, "sh", "-c", overlayScript, "sh", "/volume"))
		delete(memory, "xattr") // tmpfs knows user attributes from Linux 6.6 on
		e.wantReport(volume, memory)
		e.wantReport(volume, map[string]string{
			"run": "ok", "held": "", "whiteout": "character special file 0:0", "gone": " removed=", "moved": "4750 5:6 1000000000 lower",
			"texts": "lower more lower text text text 1", "xattr": "xattr ok",
		})
	})
}

// The overlays of config.json are of the host's directories. A file stays the same one when its first change copies it up, from
// another file system too.
func TestOverlaysOfTheHost(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		dir, memory := h.diskDir(), "/run/overlay-case"
		h.Cleanup(func() { h.noErr(os.RemoveAll(memory)) })
		h.noErr(sh(fmt.Sprintf(`
cd %s; mkdir 'odd,name:x' lower; echo odd >'odd,name:x'/odd; for file in file lock mapped gone; do echo lower >lower/$file; done
mkdir -p rw/upper rw/work ro/upper ro/work %[2]s/upper %[2]s/work`, dir, memory)))
		overlay := func(s *specs.Spec, destination, option, lower, top string) {
			addMount(destination, "overlay", "overlay", option, "lowerdir="+lower, "upperdir="+top+"/upper", "workdir="+top+"/work")(s)
		}
		b := h.bundle("overlays", `
for at in disk memory; do
	cd /$at
	before=$(stat -c %i file); exec 3>>file; echo one >&3; echo two >>file; exec 3>&-
	echo "$at=$(cat file | xargs) $([ $before = $(stat -c %i file) ] && echo same) $(rm gone; ls | xargs)"
	echo "$at-locks=$(probe flock lock 2>&1) $(probe mmap mapped 2>&1)"
done
echo "odd=$(cat /disk/odd)"
echo "nosuid=$(grep -c ' /disk .*nosuid' /proc/mounts) $(grep -c nosuid,.*/memory /proc/mounts)"
echo "xattr=$(probe xattr /disk/file 2>&1)"
echo "ro=$(touch /ro/new 2>&1)"
mount -o remount,rw /ro; echo "remounted=$(touch /ro/new 2>&1)"`, func(s *specs.Spec) {
			overlay(s, "/disk", "nosuid", dir+`/odd\,name\:x:`+dir+"/lower", dir+"/rw")
			overlay(s, "/memory", "rw", dir+"/lower", memory)
			overlay(s, "/ro", "ro", dir+"/lower", dir+"/ro")
			caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		})
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 0)
		want := map[string]string{
			"disk": "lower one two same file lock mapped odd", "disk-locks": "flock ok mmap ok",
			"memory": "lower one two same file lock mapped", "memory-locks": "flock ok mmap ok",
			"odd": "odd", "nosuid": "1 0", "xattr": "xattr ok", "ro": "touch: /ro/new: Read-only file system",
		}
		if h.rt.isVM() {
			want["remounted"] = "touch: /ro/new: Read-only file system" // by the host
		}
		h.wantReport(parseReport(r.stdout), want)
		h.want("the layers on the host", h.shOut(fmt.Sprintf("cat %[1]s/lower/file %[1]s/rw/upper/file %s/upper/file | xargs", dir, memory)), "lower lower one two lower one two\n")
	})
}
