package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container's root with a mapping is that id on the host's files, and its stand-in is in no user namespace of the host's
// own. boxlite maps in the guest; what it has on the host keeps its ids and loses its power over the host's kernel.
func TestUserNamespace(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		score := 200
		b := h.bundle("userns", "id -u; read -r map </proc/self/uid_map; echo $map; echo data >/made; stat -c %u:%g /made; exec sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
			s.Process.OOMScoreAdj = &score
		})
		h.noErr(sh(fmt.Sprintf("chmod o+x %s %s && chown -R 100000:200000 %s", workDir, b.dir, b.rootfs(""))))
		c := h.create(b)
		own, err := os.Readlink("/proc/self/ns/user")
		h.noErr(err)
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", c.pid))
		h.noErr(err)
		if own == theirs {
			h.Errorf("the stand-in is in the host's user namespace %s", own)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid))
		h.noErr(err)
		h.want("oom_score_adj on the host", string(text), "200\n")
		c.start()
		h.expect(c.out, "0:0\n")
		h.want("exec", h.must("exec", b.id, "sh", "-c", "cat /made; id -g"), "data\n0\n")
		h.want("root in another's directory", h.must("exec", b.id, "sh", "-c", "mkdir -m 755 /d && chown 5:6 /d && echo text >/d/f && stat -c %u:%g /d/f"), "0:0\n")
		var st unix.Stat_t
		h.noErr(unix.Stat(b.rootfs("made"), &st))
		h.want("owner on the host", fmt.Sprintf("%d:%d", st.Uid, st.Gid), "100000:200000")
		h.must("kill", b.id, "KILL")
		c.reaper.wait(c.pid)
		h.must("delete", b.id)
		h.want("output", c.out.wait(), "0\n0 100000 65536\n0:0\n")
	})
}
