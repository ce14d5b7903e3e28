package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A consoleSocket receives a terminal as containerd's shim does: the listener may accept only after create has returned.
type consoleSocket struct {
	h    *hand
	path string
	l    *net.UnixListener
}

func (h *hand) listenConsole() *consoleSocket {
	h.Helper()
	path := "/run/byhand-console.sock"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	h.noErr(err)
	h.Cleanup(func() { _ = l.Close() }) // which removes the path
	return &consoleSocket{h, path, l}
}

// receive takes the one message with the one descriptor.
func (c *consoleSocket) receive() *os.File {
	c.h.Helper()
	c.h.noErr(c.l.SetDeadline(time.Now().Add(deadline)))
	conn, err := c.l.AcceptUnix()
	c.h.noErr(err)
	defer conn.Close()
	data, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	c.h.noErr(err)
	if n < 1 || n > 4095 {
		c.h.Errorf("%d bytes beside the descriptor, want 1 to 4095", n)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	c.h.noErr(err)
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		c.h.noErr(err)
		fds = append(fds, got...)
	}
	if len(fds) != 1 {
		c.h.Fatalf("%d descriptors, want one", len(fds))
	}
	unix.CloseOnExec(fds[0])
	c.h.noErr(unix.SetNonblock(fds[0], true)) // so that deadlines work
	f := os.NewFile(uintptr(fds[0]), "console")
	c.h.Cleanup(func() { _ = f.Close() }) // only ours
	return f
}

// A terminalReader collects what a terminal's master gives.
type terminalReader struct {
	f    *os.File
	text string
}

// until reads up to text, or up to the end or the deadline, and returns what was read and not returned before.
func (r *terminalReader) until(text string) string {
	if err := r.f.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		return fmt.Sprint(err)
	}
	buf := make([]byte, 4096)
	for !strings.Contains(r.text, text) {
		n, err := r.f.Read(buf)
		r.text += string(buf[:n])
		if err != nil {
			return r.text + fmt.Sprintf(" [%v]", err)
		}
	}
	at := strings.Index(r.text, text) + len(text)
	part := r.text[:at]
	r.text = r.text[at:]
	return part
}
