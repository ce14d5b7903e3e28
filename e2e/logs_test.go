package e2e

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A guest that panics says why, and the command that meets its end says where.
func TestLogs(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		quiet := h.bundle("quiet", "sleep 1000", nil)
		h.create(quiet).start()
		r := h.cmd("logs", quiet.id)
		h.wantCode(r, 0)
		h.want("console of a quiet guest", r.stdout, "")
		h.wantPart("stderr", r.stderr, "has written nothing")
		h.must("delete", "--force", quiet.id)
		h.wantFail("does not exist", "logs", quiet.id)

		h.flags = []string{"--debug"}
		b := h.bundle("panics", "sleep 1000", func(s *specs.Spec) {
			caps := h.capabilities()
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		})
		c := h.create(b)
		c.start()
		h.wantPart("console", h.must("logs", b.id), "guestinit")
		h.flags = nil
		r = h.cmd("exec", b.id, "sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100")
		h.wantCode(r, 255)
		h.wantPart("stderr of exec", r.stderr, "(QEMU: exit status 0) (shutdown: guest-reset)")
		h.wantPart("stderr of exec", r.stderr, "(its console: boxlite --root /run/byhand logs "+b.id+")")
		c.end()
		h.waitStatus(b.id, specs.StateStopped)
		if text := h.must("logs", b.id); !strings.Contains(text, "Kernel panic") || strings.Contains(text, "\r") {
			h.Errorf("console = %q, want the panic", clip(text))
		}
		h.must("delete", b.id)
	})
}
