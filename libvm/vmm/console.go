package vmm

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// consoleLimit bounds what a guest can write into its console log, in bytes.
const consoleLimit = 256 << 10

// guestConsole is the host's end of the guest's console.
type guestConsole struct {
	conn   *net.UnixConn
	copied chan struct{} // closed when nothing is read any more

	asked  atomic.Bool
	answer fault.Tail    // what the guest has written since
	more   chan struct{} // a message when there is more of it
}

// readConsole keeps the first consoleLimit bytes in w and goes on reading until the
// VM ends, so that the guest never waits for it. The caller closes the console.
func readConsole(conn *net.UnixConn, w io.Writer) *guestConsole {
	c := &guestConsole{conn: conn, copied: make(chan struct{}), answer: fault.Tail{Limit: mostAnswer}, more: make(chan struct{}, 1)}
	go c.copy(w)
	return c
}

func (c *guestConsole) copy(w io.Writer) {
	defer close(c.copied)
	_, _ = io.CopyN(io.MultiWriter(c, w), c.conn, consoleLimit) // the console is a help for the reader; the VM lives without it
	_, _ = io.Copy(c, c.conn)
	_ = c.conn.Close()
}

// close returns when nothing is copied any more.
func (c *guestConsole) close() {
	_ = c.conn.Close() // it may be closed already
	<-c.copied
}

// Write takes what the guest has written.
func (c *guestConsole) Write(p []byte) (int, error) {
	if !c.asked.Load() {
		return len(p), nil
	}
	n, err := c.answer.Write(p)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return n, err
}

// A guest that does not answer can still be asked what it is waiting for: its
// kernel takes ^O on the console for SysRq (hvc_console.c) and writes there
// where each task is.

// askForTasks raises the log level, has the tasks shown and lowers the level
// again, which also marks the end.
const (
	askForTasks  = "\x0f8\x0ft\x0f3"
	endOfTasks   = "Loglevel set to 3"
	tasksTimeout = 5 * time.Second
	// mostAnswer is how much is kept of the answer: some hundred tasks, in bytes.
	mostAnswer = 128 << 10
)

// stuckTasks asks the guest's kernel what keeps the guest and returns that for an
// error, or that the kernel does not answer either. It is asked once.
func (c *guestConsole) stuckTasks() string {
	late := time.After(tasksTimeout)
	c.asked.Store(true)
	if err := c.conn.SetWriteDeadline(time.Now().Add(tasksTimeout)); err != nil {
		return ""
	}
	if _, err := c.conn.Write([]byte(askForTasks)); err != nil {
		return ""
	}
	for !strings.Contains(c.answer.String(), endOfTasks) {
		select {
		case <-c.more:
		case <-late:
			return " (nor does its kernel)"
		}
	}
	return summarizeTasks(c.answer.String())
}

// What these match is printable and, where it is not cut below, short.
var (
	taskLine  = regexp.MustCompile(`task:([!-~]+)\s+state:([A-Za-z])\s.*\spid:(\d{1,10})\s`)
	frameLine = regexp.MustCompile(`\s([a-zA-Z_][\w.]*)\+0x[0-9a-f]+/0x`)
)

// The guest's word is not to be trusted; an error shall stay readable.
const (
	mostTasks  = 6
	mostFrames = 8
	mostName   = 40 // bytes
)

// summarizeTasks makes of the kernel's list of tasks, for an error, those of
// guestinit and those that cannot be interrupted, with the functions that they
// are in, innermost first. Idle threads of guestinit, waiting on a futex, are
// left out.
func summarizeTasks(list string) string {
	var tasks []string
	for _, task := range strings.Split(list, "task:")[1:] {
		head := taskLine.FindStringSubmatch("task:" + task)
		if head == nil || head[1] != "init" && head[2] != "D" {
			continue
		}
		var frames []string
		for _, frame := range frameLine.FindAllStringSubmatch(task, -1) {
			name := frame[1]
			if name != "__schedule" && name != "schedule" && len(frames) < mostFrames {
				frames = append(frames, name[:min(len(name), mostName)])
			}
		}
		where := strings.Join(frames, " < ")
		if strings.HasPrefix(where, "futex_wait_queue") || len(tasks) == mostTasks {
			continue
		}
		name := head[1]
		tasks = append(tasks, fmt.Sprintf("%s %s (%s) in %s", name[:min(len(name), mostName)], head[3], head[2], where))
	}
	if len(tasks) == 0 {
		return ""
	}
	return " (guest kernel: " + fault.Quiet(strings.Join(tasks, "; ")) + ")"
}
