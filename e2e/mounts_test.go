package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A tmpfs without a mode has that of the directory that it covers, and 1777 where there is none; the next start finds the
// directory that the first one made. (runc before 1.1.8 gives that one's mode to a tmpfs with a mode too.)
func TestTmpfsModes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		below := h.diskDir()
		b := h.bundle("tmpfs", "cd /; stat -c '%n %a %u' new deep/new there none700 link/in", func(s *specs.Spec) {
			for dest, options := range map[string][]string{"/new": nil, "/deep/new": {"nosuid"}, "/there": {"size=1m"}, "/none700": {"mode=700"}, "/link/in": {"uid=5"}} {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options})
			}
			// As Podman's /run/.containerenv, whose tmpfs is at /run.
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/new/below", Type: "bind", Source: below, Options: []string{"bind"}})
		})
		h.noErr(sh("cd " + b.rootfs("") + " && mkdir there real && chmod 2711 there && ln -s real link"))
		for _, mode := range []string{"1777", "755"} {
			got, given := h.must("run", "--bundle", b.dir, b.id), "700"
			if !h.rt.isVM() && strings.Contains(got, "none700 "+mode) {
				given = mode // runc 1.1.5, once the directory is there; 1.1.15 no more
			}
			h.want("modes", got, strings.NewReplacer("M", mode, "G", given).Replace("new M 0\ndeep/new M 0\nthere 2711 0\nnone700 G 0\nlink/in M 5\n"))
		}
	})
}

// The attributes of an rbind are those of its top, recursive ones those of all of it; a mount below has its own otherwise.
func TestRecursiveBinds(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		dir := e.diskDir()
		h.noErr(sh(fmt.Sprintf(`cd %s && mkdir top && mkdir -p top/sub "top/de ep/er" top/ro && cp %s top/true &&
			mount -t tmpfs sub top/sub && mount -t tmpfs deeper "top/de ep/er" && mount -t tmpfs -o ro ro top/ro &&
			mkdir top/sub/in && mount -t tmpfs in top/sub/in &&
			touch top/conf && mount --bind top/true top/conf && cp top/true top/sub/true && cp top/true "top/de ep/er/true"`, dir, busyboxPath)))
		h.Cleanup(func() {
			h.noErr(sh("umount -R " + dir + "/top/sub '" + dir + "/top/de ep/er' " + dir + "/top/ro " + dir + "/top/conf"))
		})
		const script = `
for m in rw ro rro noexec rnoexec bind; do
	s=
	for d in /$m /$m/sub /$m/sub/in "/$m/de ep/er" /$m/ro; do
		(: >"$d/file") 2>/dev/null && s="$s w" || s="$s -"
		"$d/true" 2>/dev/null && s=${s}x
	done
	(: >>/$m/conf) 2>/dev/null && s="$s f"
	echo $m$s
done
(: >/data/file) && ! (: >/file) 2>/dev/null && echo the root is read-only, and not what is mounted in it`
		b := h.bundle("rbind", script, func(s *specs.Spec) {
			s.Root.Readonly = true
			for dest, options := range map[string][]string{
				"/rw": {"rbind"}, "/ro": {"rbind", "ro"}, "/rro": {"rbind", "rro"}, "/noexec": {"rbind", "noexec"}, "/rnoexec": {"rbind", "rnoexec"}, "/bind": {"bind", "ro"},
			} {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: filepath.Join(dir, "top"), Options: options})
			}
		})
		h.noErr(sh("mount -t tmpfs data " + b.rootfs("data")))
		h.Cleanup(func() { h.noErr(sh("umount " + b.rootfs("data"))) })
		want := "rw wx wx w wx - f\nro -x wx w wx - f\nrro -x -x - -x -\nnoexec w wx w wx - f\nrnoexec w w w w - f\nbind -x - - - -\nthe root is read-only, and not what is mounted in it\n"
		h.want("writable and executable", h.must("run", "--bundle", b.dir, b.id), want)
	})
}

// A cgroup mount is read-only only if its options say so.
func TestWritableCgroup(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		for option, want := range map[string]string{"ro": "ro\n", "rw": "rw\n", "nosuid": "rw\n"} {
			b := h.bundle("cgroup-"+option, `awk '$5 ~ "^/sys/fs/cgroup" && $(NF-2) ~ "cgroup" {split($6, o, ","); print o[1]}' /proc/self/mountinfo | sort -u`, func(s *specs.Spec) {
				for i := range s.Mounts {
					if s.Mounts[i].Type == "cgroup" {
						s.Mounts[i].Options = []string{option}
					}
				}
			})
			h.want("cgroup mounts with the option "+option, h.must("run", "--bundle", b.dir, b.id), want)
		}
	})
}

// A link in place of /proc or /sys could have it mounted anywhere.
func TestLinkForProc(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		for _, name := range []string{"proc", "sys"} {
			b := h.bundle("link-"+name, "echo must not run", nil)
			h.noErr(os.Rename(b.rootfs(name), b.rootfs("elsewhere")))
			h.noErr(os.Symlink("elsewhere", b.rootfs(name)))
			h.wantFail(`(proc|sysfs)\\" must be mounted on ordinary directory`, "create", "--bundle", b.dir, b.id)
		}
	})
}
