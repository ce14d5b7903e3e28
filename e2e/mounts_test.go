package e2e

import (
	"os"
	"testing"
)

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
