package fakevm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The descriptors that QEMU inherits, as libvm/vmm/qemu.go has them.
const (
	shareFD = iota + 3
	controlFD
	qmpFD
	consoleFD
	handoverFD
)

const (
	memoryPath  = "/memory"
	memoryPlace = 3 << 12 // where the fake guest has written
	// MemoryWords is what a VM that boots has in its memory.
	MemoryWords = "the memory of a VM that has booted"
	deviceState = "the state of a fake VM's devices"
)

// machine is a fake QEMU.
type machine struct {
	faults  []string
	console *net.UnixConn
	memory  *os.File
	saved   bool // it awaits the state of a saved VM

	mu    sync.Mutex
	share *os.File
	files map[string]*os.File
}

func runQEMU() {
	m := &machine{
		console: connection(consoleFD), share: os.NewFile(shareFD, "share"), files: map[string]*os.File{},
		saved: slices.Contains(os.Args, "-incoming"),
	}
	if text, err := os.ReadFile(os.Args[0] + faultSuffix); err == nil {
		m.faults = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	if m.does(NoGreeting) {
		die("fake QEMU: no greeting")
	}
	var err error
	if m.memory, err = os.OpenFile(memoryPath, os.O_RDWR, 0); err != nil {
		die(err)
	}
	if !m.saved {
		if _, err := m.memory.WriteAt([]byte(MemoryWords), memoryPlace); err != nil {
			die(err)
		}
	}
	go Guest(connection(controlFD))
	if slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "chardev=handover,") }) {
		go m.serve(connection(handoverFD))
	}
	m.serve(connection(qmpFD))
	for {
		time.Sleep(time.Hour) // QEMU goes on when the connection has ended
	}
}

func (m *machine) does(f Fault) bool { return slices.Contains(m.faults, string(f)) }

func die(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}

func connection(fd uintptr) *net.UnixConn {
	file := os.NewFile(fd, "inherited")
	conn, err := net.FileConn(file)
	if err != nil {
		die(err)
	}
	_ = file.Close() // FileConn has made a copy
	return conn.(*net.UnixConn)
}

type command struct {
	Execute   string
	Arguments json.RawMessage
	ID        string
}

// arguments are those that the fake looks at.
type arguments struct {
	ID, FDName string
}

// serve speaks QMP.
func (m *machine) serve(conn *net.UnixConn) {
	say := func(format string, values ...any) { fmt.Fprintf(conn, format+"\r\n", values...) }
	say(`{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 0}, "package": "fake"}, "capabilities": []}}`)
	var rest []byte
	var passed []*os.File
	for {
		line, more, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			part, files, err := receive(conn)
			if err != nil {
				return
			}
			rest, passed = append(rest, part...), append(passed, files...)
			continue
		}
		rest = more
		var c command
		if err := json.Unmarshal(line, &c); err != nil {
			die(err)
		}
		fmt.Fprintf(m.console, "qmp %s %s\n", c.Execute, c.Arguments)
		if m.does(DieAt(c.Execute)) {
			die("fake QEMU: " + c.Execute)
		}
		if m.does(Refuse(c.Execute)) {
			say(`{"error": {"class": "GenericError", "desc": "refused"}, "id": %q}`, c.ID)
			continue
		}
		var args arguments
		if len(c.Arguments) > 0 {
			if err := json.Unmarshal(c.Arguments, &args); err != nil {
				die(err)
			}
		}
		if c.Execute == "getfd" {
			m.mu.Lock()
			m.files[args.FDName] = passed[0]
			m.mu.Unlock()
			passed = passed[1:]
		}
		result, event := m.carryOut(c.Execute, args.ID)
		say(`{"return": %s, "id": %q}`, result, c.ID)
		if event != "" {
			say(`{"event": %s, "timestamp": {"seconds": 1, "microseconds": 1}}`, event)
		}
	}
}

// receive reads what has come, and the files beside it.
func receive(conn *net.UnixConn) ([]byte, []*os.File, error) {
	text, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		fds, rightsErr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return text[:n], files, err
}

// carryOut returns the value of a command, and the event that follows.
func (m *machine) carryOut(command, id string) (result, event string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch command {
	case "device_add":
		if id == shareDevice {
			m.awaitVirtiofsd()
		}
	case "query-chardev":
		if m.does(LateGuest) {
			return `[{"label": "control", "frontend-open": false}]`, `"VSERPORT_CHANGE", "data": {"id": "control", "open": true}`
		}
		return `[{"label": "console", "frontend-open": false}, {"label": "control", "frontend-open": true}]`, ""
	case "migrate":
		state := m.files["template"]
		if _, err := state.WriteString(deviceState); err != nil {
			die(err)
		}
		_ = state.Close() // a pipe: its reader has all
	case "query-migrate":
		return `{"status": "completed"}`, ""
	case "migrate-incoming":
		if state, err := io.ReadAll(m.files["template"]); err != nil || string(state) != deviceState {
			die(fmt.Sprintf("fake QEMU: state %q, %v", state, err))
		}
		return "{}", `"MIGRATION", "data": {"status": "completed"}`
	case "cont":
		words := make([]byte, len(MemoryWords))
		if _, err := m.memory.ReadAt(words, memoryPlace); err != nil || string(words) != MemoryWords {
			die(fmt.Sprintf("fake QEMU: memory %q, %v", words, err))
		}
	case "device_del":
		return "{}", fmt.Sprintf(`"DEVICE_DELETED", "data": {"device": %q}`, id)
	case "chardev-remove":
		_ = m.share.Close() // virtiofsd sees it
	case "chardev-add":
		m.share = m.files["share"]
	}
	return "{}", ""
}

// runVirtiofsd serves nothing for as long as QEMU has its end. As with the real one its
// root is the share.
func runVirtiofsd() {
	if err := enterShare(); err != nil {
		die(err)
	}
	listener, err := net.FileListener(os.NewFile(shareFD, "listener"))
	if err != nil {
		die(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		die(err)
	}
	_, _ = conn.Write([]byte{0}) // QEMU may have gone
	_, _ = io.Copy(io.Discard, conn)
	os.Exit(0)
}

// shareDevice is the id of the share's device.
const shareDevice = "share"

// awaitVirtiofsd returns when virtiofsd serves the share, or has ended: the real QEMU adds
// no such device before that.
func (m *machine) awaitVirtiofsd() {
	const patience = 20_000 // milliseconds
	fd := int(m.share.Fd())
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience); err == nil && n == 1 {
		_, _ = unix.Read(fd, make([]byte, 1)) // one that has ended shows elsewhere
	}
}

func enterShare() error {
	i := slices.IndexFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "source=") || arg == "--shared-dir" })
	if i < 0 || i+1 == len(os.Args) {
		return errors.New("fake virtiofsd: no share")
	}
	share, ok := strings.CutPrefix(os.Args[i], "source=")
	if !ok {
		share = os.Args[i+1]
	}
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""), unix.Mount(share, share, "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Chdir(share), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"),
	)
}
