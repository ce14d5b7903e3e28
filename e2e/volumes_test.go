package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/parts"
)

func TestVolumeBothWays(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		e.noErr(os.WriteFile(filepath.Join(dir, "from-host"), []byte("hello\n"), 0o640))
		e.noErr(os.Chown(filepath.Join(dir, "from-host"), 1234, 4321))
		id := e.start("-v", dir+":/v", "busybox", "sleep", "1000")
		e.want("host's file", e.exec(id, "cat", "/v/from-host"), "hello")
		e.want("its owner and mode", e.exec(id, "stat", "-c", "%u:%g %a %s", "/v/from-host"), "1234:4321 640 6")

		// While the container runs, each side sees at once what the other does.
		e.exec(id, "sh", "-c", "echo from the container >/v/new && chown 77:88 /v/new && chmod 4751 /v/new")
		text, err := os.ReadFile(filepath.Join(dir, "new"))
		e.noErr(err)
		e.want("container's file", string(text), "from the container\n")
		fi, err := os.Stat(filepath.Join(dir, "new"))
		e.noErr(err)
		st := fi.Sys().(*syscall.Stat_t)
		e.want("its owner and mode", fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777), "77:88 4751")
		e.noErr(os.WriteFile(filepath.Join(dir, "later"), []byte("1"), 0o644))
		e.want("file made later", e.exec(id, "cat", "/v/later"), "1")
		for _, text := range []string{"changed and longer", "of the same length"} {
			e.noErr(os.WriteFile(filepath.Join(dir, "later"), []byte(text), 0o644))
			if err := waitFor("the change shows", func() bool { return e.docker("exec", id, "cat", "/v/later").stdout == text }); err != nil {
				e.Error(err)
			}
		}
		e.noErr(os.Remove(filepath.Join(dir, "later")))
		if err := waitFor("the removal shows", func() bool { return e.docker("exec", id, "test", "-e", "/v/later").code == 1 }); err != nil {
			e.Error(err)
		}
	})
}

// Who may create files decides as on a local file system: by supplementary groups, and by capabilities over the files of a
// user namespace, too.
func TestCreateInVolume(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		for name, d := range map[string]struct {
			uid, gid int
			mode     uint32
		}{
			"group": {0, 1001, 0o2775}, "own": {1002, 1003, 0o700}, "root": {0, 0, 0o755}, "other": {5, 6, 0o2777}, "user": {1500, 1500, 0o755},
		} {
			path := filepath.Join(dir, name)
			e.noErr(os.Mkdir(path, 0o755))
			e.noErr(os.Chown(path, d.uid, d.gid))
			e.noErr(syscall.Chmod(path, d.mode))
		}
		const create = `cd /v; umask 022
for d in group own root other; do
	echo "$d=$(touch $d/f && mkdir $d/d && mkfifo $d/p && ln -s f $d/l && echo made)"
	echo "$d-set-gid=$(touch $d/s && chmod 2775 $d/s && stat -c %a $d/s)"
	echo "$d-owners=$(stat -c '%u:%g %a' $d/f $d/d $d/p 2>/dev/null | tr '\n' ' ')"
done 2>/dev/null`
		e.wantReport(e.report("--user", "1002:1003", "--group-add", "1001", "-v", dir+":/v", "busybox", "sh", "-c", create), map[string]string{
			"group": "made", "group-set-gid": "2775", "group-owners": "1002:1001 644 1002:1001 2755 1002:1001 644 ",
			"own": "made", "own-set-gid": "2775", "own-owners": "1002:1003 644 1002:1003 755 1002:1003 644 ",
			"root": "", "root-set-gid": "", "root-owners": "",
			"other": "made", "other-set-gid": "775", "other-owners": "1002:6 644 1002:6 2755 1002:6 644 ", // of a group that it is not in
		})
		const inNamespace = `cd /v/user && mkdir -m 555 d && mkdir d/e && touch d/f && echo text >d/f && rm -r d/e && stat -c '%u:%g %a' d d/f && ! touch /v/root/f 2>/dev/null`
		e.want("root of a user namespace", e.runOK("--user", "1500:1500", "--security-opt", "seccomp=unconfined", "-v", dir+":/v", "busybox",
			"unshare", "-U", "-r", "sh", "-c", inNamespace), "0:0 555\n0:0 644")
	})
}

// A volume behaves as a local file system does, and so does the container's root.
func TestVolumeIsAFileSystem(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		const script = `
cd $1 || exit
echo "mmap=$(probe mmap mapped 2>&1)"
echo "flock=$(probe flock lock 2>&1)"
echo "fcntl=$(probe fcntl record 2>&1)"
echo "xattr=$(touch attr; probe xattr attr 2>&1)"
echo text >a; ln a b; ln -s a c; ln -s /etc/in-image out
echo "links=$(stat -c %h a) $(readlink c) $(cat c) $([ a -ef b ] && echo same)"
echo "absolute=$(cat out)"
mv a moved; echo "rename=$(cat b moved | wc -l) $(cat c 2>/dev/null || echo dangling)"
mkdir -p d/e/f; echo "rmdir=$(rmdir d 2>&1 | grep -o 'not empty') $(rm -r d && echo removed)"
mkfifo pipe; (echo through >pipe &); echo "fifo=$(cat pipe)"
touch -d @1000000001 old; echo "mtime=$(stat -c %Y old)"
exec 5>gone; rm gone; echo still >&5; echo "unlinked=ok"
dd if=/dev/zero of=sparse bs=1 count=1 seek=1073741823 2>/dev/null; echo "sparse=$(stat -c %s sparse) $([ $(stat -c %b sparse) -lt 1000 ] && echo small)"
truncate -s 10 sparse; echo "truncate=$(stat -c %s sparse)"
i=0; while [ $i -lt 300 ]; do : >many-$i; i=$((i+1)); done; echo "many=$(ls | grep -c many-)"
touch private; chmod 600 private; chmod 777 .
echo "denied=$(su -s /bin/sh user -c 'cat private' 2>&1 | grep -o 'ermission denied')"
umask 027; touch masked; echo "umask=$(stat -c %a masked)"
touch "sp ace" "$(printf 'new\nline')"; [ -e "$(printf 'new\nline')" ] && echo "names=$(ls | grep -c 'sp ace')"
sync
`
		for _, at := range []string{"/v", "/root"} {
			got := e.report("-v", dir+":/v", "busybox", "sh", "-c", script, "sh", at)
			e.wantReport(got, map[string]string{
				"mmap": "mmap ok", "flock": "flock ok", "fcntl": "fcntl ok", "xattr": "xattr ok",
				"links": "2 a text same", "absolute": "from the image", "rename": "2 dangling",
				"rmdir": "not empty removed", "fifo": "through", "mtime": "1000000001", "unlinked": "ok",
				"sparse": "1073741824 small", "truncate": "10", "many": "300", "denied": "ermission denied",
				"umask": "640", "names": "1",
			})
			if e.Failed() {
				e.Logf("in %s", at)
			}
		}

		// The host sees the same files.
		data, err := os.ReadFile(filepath.Join(dir, "mapped"))
		e.noErr(err)
		e.wantPart("what was written through the mapping", string(data[1<<20:1<<20+64]), "written through the mapping")
		buf := make([]byte, 16)
		n, err := unix.Getxattr(filepath.Join(dir, "attr"), "user.kept", buf)
		e.noErr(err)
		e.want("attribute", string(buf[:n]), "kept")
		target, err := os.Readlink(filepath.Join(dir, "out"))
		e.noErr(err)
		e.want("symbolic link", target, "/etc/in-image")
		one, err := os.Stat(filepath.Join(dir, "moved"))
		e.noErr(err)
		two, err := os.Stat(filepath.Join(dir, "b"))
		e.noErr(err)
		if !os.SameFile(one, two) {
			e.Errorf("the hard links are two files on the host")
		}
	})
}

func TestReadOnlyVolumeAndSingleFile(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		file := filepath.Join(dir, "file")
		e.noErr(os.WriteFile(file, []byte("first\n"), 0o644))
		e.noErr(os.WriteFile(filepath.Join(dir, "neighbour"), nil, 0o644))
		e.noErr(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		id := e.start("-v", dir+":/ro:ro", "-v", file+":/rw-file", "-v", file+":/deep/er/ro-file:ro", "-v", dir+"/sub:/ro/sub",
			"busybox", "sleep", "1000")
		for _, script := range []string{"touch /ro/new", "echo >/ro/file", "chmod 777 /ro/file", "rm /ro/file", "echo >/deep/er/ro-file"} {
			r := e.docker("exec", id, "sh", "-c", script)
			e.wantCode(r, 1)
			e.wantPart(script, r.stderr, "Read-only file system")
		}
		e.want("file", e.exec(id, "cat", "/rw-file", "/deep/er/ro-file"), "first\nfirst")
		e.want("neighbours of a single file", e.exec(id, "ls", "/deep/er"), "ro-file")
		e.exec(id, "sh", "-c", "echo second >>/rw-file; touch /ro/sub/allowed")
		text, err := os.ReadFile(file)
		e.noErr(err)
		e.want("file on the host", string(text), "first\nsecond\n")
		if _, err := os.Stat(filepath.Join(dir, "sub/allowed")); err != nil {
			e.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
			e.Errorf("a file was made in a read-only volume")
		}
	})
}

func TestNamedVolumes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("volume", "create", "kept")
		e.runOK("-v", "kept:/data", "busybox", "sh", "-c", "echo kept >/data/file; chown 5:6 /data/file")
		e.want("in the next container", e.runOK("-v", "kept:/other", "busybox", "sh", "-c", "cat /other/file; stat -c %u:%g /other/file"), "kept\n5:6")

		// A new named volume begins with what the image has there; so does --volumes-from see it.
		id := e.start("-v", "filled:/etc", "busybox", "sleep", "1000")
		e.want("filled from the image", e.exec(id, "cat", "/etc/in-image"), "from the image")
		e.exec(id, "touch", "/etc/added")
		e.want("volumes-from", e.runOK("--volumes-from", id, "busybox", "ls", "/etc/added"), "/etc/added")
	})
}

func TestTmpfsAndReadOnlyRoot(t *testing.T) {
	eachRuntime(t, func(e *env) {
		got := e.report("--read-only", "--tmpfs", "/scratch:size=4m,mode=1711,uid=7", "--tmpfs", "/plain", "--mount", "type=tmpfs,dst=/m,tmpfs-size=1048576",
			"--tmpfs", "/home/user", "--tmpfs", "/new", "--tmpfs", "/new700:mode=700", "--tmpfs", "/root:ro", "-v", "anon:/data", "busybox", "sh", "-c", `
echo "root=$(touch /file 2>&1 | grep -o 'Read-only file system')"
echo "etc=$(touch /etc/file 2>&1 | grep -o 'Read-only file system')"
echo "scratch=$(stat -c '%a %u' /scratch) $(df -k /scratch | awk 'NR==2{print $2}')"
echo "modes=$(stat -c %a /home/user /new /new700 /root | xargs) $(touch /root/x 2>&1 | grep -o 'Read-only file system')"
echo "plain=$(echo x >/plain/x && cat /plain/x)"
echo "m=$(df -k /m | awk 'NR==2{print $2}')"
echo "full=$(dd if=/dev/zero of=/scratch/big bs=1M count=5 2>&1 | grep -o 'No space left on device')"
echo "type=$(grep ' /scratch ' /proc/self/mountinfo | grep -o ' - tmpfs' )"
echo "options=$(grep ' /plain ' /proc/self/mountinfo | grep -o 'nosuid,nodev,noexec')"
echo "volume=$(touch /data/x && echo ok)"
echo "dev=$(touch /dev/x && echo ok) shm=$(touch /dev/shm/x && echo ok)"`)
		e.wantReport(got, map[string]string{
			"root": "Read-only file system", "etc": "Read-only file system", "scratch": "1711 7 4096", "modes": "755 1777 700 755 Read-only file system", "plain": "x", "m": "1024",
			"full": "No space left on device", "type": " - tmpfs", "options": "nosuid,nodev,noexec", "volume": "ok", "dev": "ok shm=ok",
		})
	})
}

// Where a link of the image leads to nothing, what is mounted on it is mounted there.
func TestMountPointsBehindLinks(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		dir := e.diskDir()
		e.noErr(os.WriteFile(filepath.Join(dir, "conf"), []byte("the host's\n"), 0o644))
		b := h.bundle("links", "cat /etc/resolv.conf /run/stub/resolv.conf /etc/data/conf; awk '$5 ~ /data|run/ {print $5, $(NF-1)}' /proc/self/mountinfo", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/etc/resolv.conf", Type: "bind", Source: filepath.Join(dir, "conf"), Options: []string{"bind"}},
				specs.Mount{Destination: "/etc/data", Type: "bind", Source: dir, Options: []string{"bind"}},
				specs.Mount{Destination: "/var/run/x", Type: "tmpfs", Source: "behind", Options: []string{"mode=700"}})
		})
		e.noErr(sh(fmt.Sprintf("cd %s && ln -s ../run/stub/resolv.conf etc/resolv.conf && ln -s /srv/data etc/data && mkdir var && ln -s /run var/run", b.rootfs(""))))
		out := h.must("run", "--bundle", b.dir, b.id)
		e.wantPart("stdout", out, strings.Repeat("the host's\n", 3))
		e.wantPart("stdout", out, "/run/x behind\n")
		e.wantPart("stdout", out, "/srv/data ")
	})
}

// Many mounts are many mounts: each shows its own directory, in whatever order they come.
func TestManyVolumes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		args := []string{}
		var want strings.Builder
		for i := range 20 {
			sub := filepath.Join(dir, itoa(i))
			e.noErr(os.Mkdir(sub, 0o755))
			e.noErr(os.WriteFile(filepath.Join(sub, "name"), fmt.Appendf(nil, "volume %d\n", i), 0o644))
			args = append(args, "-v", fmt.Sprintf("%s:/v/%d", sub, i))
			fmt.Fprintf(&want, "volume %d\n", i)
		}
		got := e.runOK(append(args, "busybox", "sh", "-c", "for i in $(seq 0 19); do cat /v/$i/name; done")...)
		e.want("the volumes", got+"\n", want.String())
	})
}

// docker replaces these three for each container, in place of the image's.
func TestFilesOfDocker(t *testing.T) {
	eachRuntime(t, func(e *env) {
		got := e.report("--hostname", "me", "--dns", "192.0.2.53", "busybox", "sh", "-c", `
echo "resolv=$(grep nameserver /etc/resolv.conf)"
echo "hostname=$(cat /etc/hostname)"
echo "hosts=$(grep -c localhost /etc/hosts)"`)
		e.wantReport(got, map[string]string{"resolv": "nameserver 192.0.2.53", "hostname": "me", "hosts": "2"})
	})
}

// Podman writes /etc/resolv.conf between create and start. The container reads what is there when it starts.
func TestFileWrittenBeforeStart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		file := filepath.Join(e.diskDir(), "file")
		e.noErr(os.WriteFile(file, nil, 0o644))
		b := h.bundle("late-file", "cat /etc/late", func(spec *specs.Spec) {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/etc/late", Type: "bind", Source: file, Options: []string{"bind"}})
		})
		c := h.create(b)
		e.noErr(os.WriteFile(file, []byte("written\n"), 0o644))
		h.must("start", b.id)
		e.want("stdout", c.out.wait(), "written\n")
	})
}

// A container may have to do with more files than virtiofsd may have descriptors.
func TestManyFiles(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("many", "mkdir /many && probe many /many 1300 && rm -r /many", nil)
		argv := append(h.atMost1000Files(), h.argv("run", "--bundle", b.dir, b.id)...)
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		c := exec.CommandContext(ctx, argv[0], argv[1:]...)
		c.Env = h.vars
		if r := finish(ctx, c); r.stdout != "many ok\n" {
			h.Errorf("files: %s", r)
		}
	})
}

// atMost1000Files runs a program so that its containers have no more of the host's files.
func (h *hand) atMost1000Files() []string {
	h.Helper()
	virtiofsd, err := parts.FindVirtiofsd(parts.Options{})
	h.noErr(err)
	limit := 1000
	if virtiofsd.Dialect == parts.DialectRust {
		limit += 610 // which it keeps for itself
	}
	return []string{"setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "prlimit", fmt.Sprintf("--nofile=%d:%[1]d", limit)}
}

// Files in use cannot be forgotten: a container that uses many keeps what it has read of the others. Files that are not the
// host's do not count.
func TestManyFilesInUse(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		const script = `mkdir /many /dev/shm/many && probe many /dev/shm/many 3000 && probe many /many 900 && mkfifo /says /hears || exit
probe watched /many 650 </hears >/says &
exec 9>/hears; read line </says; echo $line
i=650; while [ $i -lt 900 ]; do read line </many/$i; i=$((i+2)); case $i in *0) sleep 0.1 ;; esac; done; echo read`
		b := h.bundle("many-in-use", script, nil)
		log := filepath.Join(b.dir, "log")
		h.flags = []string{"--debug", "--log", log}
		r := h.cmdAs(h.atMost1000Files(), "run", "--bundle", b.dir, b.id)
		h.flags = nil
		if r.stdout != "many ok\nmany ok\nwatched ok\nread\n" {
			h.Errorf("output: %s", r)
		}
		text, err := os.ReadFile(log)
		h.noErr(err)
		forgot := regexp.MustCompile(`had the guest forget files.*`).FindAll(text, -1)
		inVain := 0
		for _, line := range forgot {
			if regexp.MustCompile(` after="[5-9]\d\d"`).Match(line) { // half of the limit, or more: also while the first 650 come into use
				inVain++
			}
		}
		if inVain == 0 || inVain > 3 {
			h.Errorf("the guest, with 650 files in use, forgot the others %d times, want 1 to 3: %q", inVain, forgot)
		}
	})
}

// A container makes a file without looking first whether there is one. What the host had there already, unseen, is as safe as if it had.
func TestFilesUnseen(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		e.noErr(os.Chmod(dir, 0o777))
		for name, mode := range map[string]os.FileMode{"secret": 0o600, "read-only": 0o644, "theirs": 0o666, "exists": 0o666, "append": 0o666} {
			e.noErr(os.WriteFile(in(name), []byte("old\n"), mode))
			e.noErr(os.Chmod(in(name), mode))
		}
		e.noErr(os.Mkdir(in("dir"), 0o777))
		e.noErr(os.Symlink("target", in("link")))
		e.noErr(os.Symlink("secret", in("link-to-secret")))
		e.noErr(os.WriteFile(in("program"), []byte("old\n"), 0o777))
		e.noErr(os.Chmod(in("program"), 0o777))
		// CAP_NET_RAW, as on ping, version 2.
		capability := append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...)
		e.noErr(unix.Setxattr(in("program"), "security.capability", capability, 0))

		got := e.report("-v", dir+":/v", "-w", "/v", "-u", "1000:1000", "busybox", "sh", "-c", `
try() { echo "$1=$(sh -c "$2" 2>&1 | sed 's/.*: //')"; }
try secret 'echo new >secret'
try read-only 'echo new >read-only'
try theirs 'echo new >theirs'
try exists 'set -C; echo new >exists'
try append 'echo new >>append'
try dir 'echo new >dir'
try link 'echo new >link'
try link-to-secret 'echo new >>link-to-secret'
try program 'echo new >>program'
try new 'set -C; umask 027; echo new >new; stat -c "%a %u:%g %s" new'
try again 'set -C; echo again >new'`)
		e.wantReport(got, map[string]string{
			"secret": "Permission denied", "read-only": "Permission denied", "theirs": "", "exists": "File exists", "append": "", "dir": "Is a directory",
			"link": "", "link-to-secret": "Permission denied", "program": "", "new": "640 1000:1000 4", "again": "File exists",
		})
		for name, want := range map[string]string{
			"secret": "old\n", "read-only": "old\n", "theirs": "new\n", "exists": "old\n", "append": "old\nnew\n", "target": "new\n", "program": "old\nnew\n", "new": "new\n",
		} {
			text, err := os.ReadFile(in(name))
			e.noErr(err)
			e.want(name, string(text), want)
		}
		if _, err := unix.Getxattr(in("program"), "security.capability", make([]byte, 64)); !errors.Is(err, unix.ENODATA) {
			e.Errorf("capability of a program that was written to: %v, want %v", err, unix.ENODATA)
		}
	})
}
