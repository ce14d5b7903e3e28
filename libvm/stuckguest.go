package libvm

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"
)

// A guest that does not answer can still be asked what it is waiting for: its
// kernel takes ^O on the console for SysRq (hvc_console.c) and writes there
// where each task is.

// askForTasks raises the log level, has the tasks shown and lowers the level
// again, which also marks the end.
const (
	askForTasks  = "\x0f8\x0ft\x0f3"
	endOfTasks   = "Loglevel set to 3"
	tasksTimeout = 5 * time.Second
)

// consoleKept is how much is kept of what the guest wrote last on its console:
// some hundred tasks, in bytes.
const consoleKept = 128 << 10

// consoleEnd keeps the end of what the guest writes on its console.
type consoleEnd struct {
	tailBuffer
	more chan struct{} // a message when something was written
}

func newConsoleEnd() *consoleEnd {
	return &consoleEnd{tailBuffer: tailBuffer{limit: consoleKept}, more: make(chan struct{}, 1)}
}

func (c *consoleEnd) Write(p []byte) (int, error) {
	n, err := c.tailBuffer.Write(p)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return n, err
}

// stuckTasks asks the guest's kernel what keeps the guest and returns that for an
// error, or that the kernel does not answer either.
func (c *consoleEnd) stuckTasks(console net.Conn) string {
	deadline := time.Now().Add(tasksTimeout)
	if err := console.SetWriteDeadline(deadline); err != nil {
		return ""
	}
	if _, err := console.Write([]byte(askForTasks)); err != nil {
		return ""
	}
	late := time.After(tasksTimeout)
	for !strings.Contains(c.String(), endOfTasks) {
		select {
		case <-c.more:
		case <-late:
			return " (nor does its kernel)"
		}
	}
	return summarizeTasks(c.String())
}

var (
	taskLine  = regexp.MustCompile(`task:(\S+)\s+state:(\S)\s.*\spid:(\d+)\s`)
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
	return " (guest kernel: " + quiet(strings.Join(tasks, "; ")) + ")"
}
