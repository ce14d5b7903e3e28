package e2e

import "testing"

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
