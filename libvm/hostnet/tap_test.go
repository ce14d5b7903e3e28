package hostnet

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTunAdvice(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOENT: "--device /dev/net/tun", unix.ENODEV: "modprobe tun", unix.ENXIO: "modprobe tun",
		unix.EACCES: "chmod 666", unix.EPERM: "chmod 666", unix.EMFILE: "boxlite check",
	} {
		err := fmt.Errorf("x: %w", &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: errno})
		if got := tunAdvice(err); !strings.Contains(got, want) {
			t.Errorf("tunAdvice(%v) = %q, want %q in it", errno, got, want)
		}
	}
}
