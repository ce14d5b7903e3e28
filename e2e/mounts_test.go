package e2e

import (
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

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
