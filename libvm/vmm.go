package libvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"boxlite/internal/trace"
	"boxlite/libvm/accel"
	"boxlite/libvm/parts"
	"boxlite/libvm/qmp"
	"boxlite/libvm/template"
)

var (
	// errLost is the end of QEMU or virtiofsd under somebody who waits for the VM.
	errLost = errors.New("the virtual machine has ended")
	// errNoAnswer is a guest that does not say in time what it was asked for.
	errNoAnswer = errors.New("no answer")
)

// vmm is a running virtual machine: virtiofsd, QEMU and the sockets to them.
type vmm struct {
	control *net.UnixConn // the guest's control port
	console *guestConsole
	qmp     *qmp.Client
	memory  *os.File // the guest's memory; closed once nobody copies it any more
	log     *slog.Logger

	virtiofsd *vmProcess
	qemu      *vmProcess

	spare    spareEnds
	grownMiB int // memory that growMemory has plugged in
}

// vmmFiles are the directories and files that a VM needs of its caller.
type vmmFiles struct {
	share   string // for virtiofsd; empty for a VM without a share
	nodes   bool   // device nodes may be made in the share
	root    string // an empty directory for QEMU's own use
	console io.Writer
	scratch *os.File // the raw image of a scratch disk; nil for none
}

// spareEnds are a standby VM's ends for its container: a second connection to
// QEMU, which nothing was said on, and the socket at which QEMU awaits virtiofsd.
type spareEnds struct {
	qmp       *net.UnixConn
	virtiofsd *os.File
}

func (s *spareEnds) close() {
	if s.qmp != nil {
		_ = s.qmp.Close()
	}
	if s.virtiofsd != nil {
		_ = s.virtiofsd.Close()
	}
}

// launch is a VM being started.
type launch struct {
	parts *parts.Parts
	cfg   vmConfig
	files vmmFiles
	from  *template.Template // nil for a VM that boots
	steps *trace.Recorder
	log   *slog.Logger

	vm        *vmm
	qmp       *net.UnixConn // until the VM's client has it
	console   *net.UnixConn // until the VM's console has it
	virtiofsd *os.File      // the listening socket for it
	inherited []*os.File    // by QEMU, in the order of its descriptors
	lent      []*os.File    // the children's ends; closed here once they run, so that their end shows
}

// startVMM starts QEMU and virtiofsd beside it. The VM boots, or with from is
// made a copy of a template, and has no share yet. A copy for standby stands still.
// startVMM must be called before the monitor leaves the host's file systems. The
// caller closes the VM. One that could not be started is closed, and returned for
// what its processes said.
func startVMM(p *parts.Parts, cfg vmConfig, files vmmFiles, from *template.Template, steps *trace.Recorder, log *slog.Logger) (*vmm, error) {
	l := &launch{parts: p, cfg: cfg, files: files, from: from, steps: steps, log: log, vm: &vmm{log: log}}
	err := l.run()
	if err != nil {
		l.abandon()
	}
	return l.vm, err
}

func (l *launch) run() error {
	for _, step := range []func() error{l.connect, l.spawn, l.greet, l.settle} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// abandon closes what a launch that has failed has opened.
func (l *launch) abandon() {
	closeAll(l.lent)
	for _, conn := range []*net.UnixConn{l.qmp, l.console} {
		if conn != nil {
			_ = conn.Close()
		}
	}
	l.vm.close()
}

// connect makes the sockets to QEMU and virtiofsd.
func (l *launch) connect() error {
	listener, client, err := shareSocket()
	if err != nil {
		return fmt.Errorf("socket for virtiofsd: %w", err)
	}
	l.virtiofsd, l.inherited, l.lent = listener, []*os.File{client}, []*os.File{listener, client}
	for _, mine := range []**net.UnixConn{&l.vm.control, &l.qmp, &l.console} {
		if err := l.pair(mine); err != nil {
			return err
		}
	}
	l.cfg.incoming = l.from != nil
	if l.files.scratch != nil {
		l.inherited, l.cfg.scratch = append(l.inherited, l.files.scratch), true
	}
	if l.cfg.standby {
		return l.pair(&l.vm.spare.qmp)
	}
	return nil
}

// pair makes a connection to QEMU.
func (l *launch) pair(mine **net.UnixConn) error {
	conn, theirs, err := Socketpair()
	if err != nil {
		return partError("sockets to QEMU", err)
	}
	*mine, l.inherited, l.lent = conn, append(l.inherited, theirs), append(l.lent, theirs)
	return nil
}

// spawn starts both processes.
func (l *launch) spawn() error {
	defer l.steps.Begin("start QEMU and virtiofsd")()
	args := l.cfg.args()
	l.log.Debug("starting QEMU", "command", quoteCommand(l.parts.QEMU, args))
	room := &cell{
		dir: l.files.root, program: l.parts.QEMU, images: []string{l.cfg.kernel, l.cfg.initramfs}, memoryMiB: l.cfg.memoryMiB,
		kvm: l.cfg.accel == accel.KVM, log: l.log,
	}
	if l.cfg.firmware != "" {
		room.images = append(room.images, l.cfg.firmware)
	}
	var err error
	if room.who, err = qemuIdentity(); err != nil {
		return partError("look for a user for QEMU", err)
	}
	confineQEMU := func(attr *syscall.SysProcAttr) (err error) {
		if l.cfg.accel == accel.TCG {
			if err := runAsBatch(); err != nil { // slower beside others, no more
				l.log.Debug("QEMU keeps its scheduling policy", "error", err)
			}
		}
		l.vm.memory, err = room.enter(attr)
		return err
	}
	if l.vm.qemu, err = startProcess("QEMU", l.parts.QEMU, args, confineQEMU, l.log, l.inherited...); err != nil {
		return err
	}
	if l.files.share != "" {
		if l.vm.virtiofsd, err = startVirtiofsd(l.parts.Virtiofsd, l.files, l.log, l.virtiofsd); err != nil {
			return err
		}
	}
	closeAll(l.lent)
	l.lent = nil
	return nil
}

// greet opens the VM's console and waits for QEMU's first word, while the memory
// of the template is copied.
func (l *launch) greet() error {
	l.vm.console, l.console = readConsole(l.console, l.files.console), nil
	copied := make(chan error, 1)
	if l.from == nil {
		copied <- nil
	} else {
		go func() {
			defer l.steps.Begin("copy the template's memory")()
			copied <- l.from.CopyMemory(l.vm.memory)
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answered := l.steps.Begin("await QEMU's first word")
	client, err := qmp.New(ctx, l.qmp)
	l.qmp = nil // it is the client's, or closed
	answered()
	copyErr := <-copied // whatever has become of QEMU: the file is closed when the launch is
	if err != nil {
		return fmt.Errorf("QEMU did not come up: %w%s", err, l.vm.lastWords())
	}
	l.vm.qmp = client
	return copyErr
}

// settle empties QEMU's root while QEMU loads the state of the template, and only
// then has a saved VM go on.
func (l *launch) settle() error {
	emptied := make(chan error, 1)
	go func() {
		defer l.steps.Begin("empty QEMU's root")()
		emptied <- l.vm.qemu.onThread(emptyRoot)
	}()
	var err error
	if l.from != nil {
		loaded := l.steps.Begin("load the VM's state")
		err = l.vm.load(l.from.State)
		loaded()
	}
	err = cmp.Or(err, <-emptied)
	if err == nil && l.from != nil && !l.cfg.standby {
		err = l.vm.proceed() // it was saved while it stood still
	}
	return err
}

// shareSocket is a vhost-user connection to come: a listening socket for
// virtiofsd and a client already connected to it for QEMU, so that neither has
// to wait for the other. The name is one the kernel makes up (autobind,
// unix(7)).
func shareSocket() (listener, client *os.File, err error) {
	lfd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	listener = os.NewFile(uintptr(lfd), "vhost-user listener")
	cfd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	client = os.NewFile(uintptr(cfd), "vhost-user client")
	connect := func() error {
		if err := unix.Bind(lfd, &unix.SockaddrUnix{}); err != nil {
			return err
		}
		if err := unix.Listen(lfd, 1); err != nil {
			return err
		}
		addr, err := unix.Getsockname(lfd)
		if err != nil {
			return err
		}
		return unix.Connect(cfd, addr)
	}
	if err := connect(); err != nil {
		return nil, nil, errors.Join(err, listener.Close(), client.Close())
	}
	return listener, client, nil
}

// startVirtiofsd starts virtiofsd for a share.
func startVirtiofsd(program parts.Virtiofsd, files vmmFiles, log *slog.Logger, listener *os.File) (*vmProcess, error) {
	return startProcess("virtiofsd", program.Path, virtiofsdArgs(program.Dialect, 3, files.share, files.nodes), func(attr *syscall.SysProcAttr) error {
		// Its root is the share as soon as it has it, and until then what the
		// monitor's is now.
		attr.Cloneflags = unix.CLONE_NEWNS
		return noNewPrivileges()
	}, log, listener)
}

// virtiofsdArgs is the command line of either virtiofsd. Both give up all
// capabilities but those over files, and with nodes CAP_MKNOD.
//
// With cache=auto the guest's kernel forgets a file's content whenever somebody
// opens it, so that every start of a program reads it anew, and under TCG
// translates it anew. cache=always keeps the content, and with a timeout of a
// second is otherwise like auto: names and attributes older than that are asked
// for again, and a file of another size or time of change is read again. The
// Rust one has no such timeout.
func virtiofsdArgs(dialect parts.Dialect, fd int, dir string, nodes bool) []string {
	capabilities := "-mknod"
	if nodes {
		capabilities = "+mknod"
	}
	if dialect == parts.DialectRust {
		return []string{
			fmt.Sprintf("--fd=%d", fd), "--shared-dir", dir, "--cache=auto", "--xattr", "--announce-submounts",
			"--modcaps=" + capabilities, "--xattrmap=" + attributeMap, "--sandbox=namespace", "--log-level=error",
		}
	}
	return []string{
		fmt.Sprintf("--fd=%d", fd), "-o", "source=" + dir, "-o", "cache=always", "-o", "timeout=1", "-o", "xattr", "-o", "announce_submounts",
		"-o", "modcaps=" + capabilities, "-o", "xattrmap=" + attributeMap, "-o", "sandbox=namespace", "-o", "log_level=err",
	}
}

// attributeMap gives the guest's attributes that are its kernel's or its root's
// business other names on the host, where they would be the host's, and would need
// CAP_SYS_ADMIN: trusted.* and all of security.* but file capabilities, which are
// the same thing on both. The host's own it does not see. (The rules are of
// virtiofsd's documentation, "Extended attribute mapping"; the first one that
// matches counts.)
const attributeMap = ":ok:all:security.capability:security.capability:" +
	":prefix:all:security.:user.virtiofs.:" +
	":bad:server::security.:" +
	":map:trusted.:user.virtiofs.:"

// lost is closed when QEMU or virtiofsd has ended.
func (v *vmm) lost() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		select {
		case <-v.qemu.done:
		case <-v.virtiofsd.done:
		}
		close(gone)
	}()
	return gone
}

// kill ends both processes, at once, and returns when they are gone. It may be
// called again and on a half-started VMM.
func (v *vmm) kill() {
	processes := slices.DeleteFunc([]*vmProcess{v.qemu, v.virtiofsd}, func(p *vmProcess) bool { return p == nil })
	for _, p := range processes {
		p.kill()
	}
	for _, p := range processes {
		<-p.done
	}
	v.letGoOfMemory()
	v.spare.close()
}

// close ends both processes and lets go of everything: the sockets, the memory and
// the goroutine that copies the console. The VM must not be used afterwards. It may
// be called again and on a half-started VMM.
func (v *vmm) close() {
	v.kill()
	if v.control != nil {
		_ = v.control.Close()
	}
	if v.qmp != nil {
		_ = v.qmp.Close()
	}
	if v.console != nil {
		v.console.close()
	}
}

// stuckTasks asks the guest's kernel what keeps the guest, for an error.
func (v *vmm) stuckTasks() string { return v.console.stuckTasks() }

// lastWords tells how QEMU and virtiofsd have ended, to be appended to an error;
// nothing of one that still runs.
func (v *vmm) lastWords() string { return v.qemu.lastWords() + v.virtiofsd.lastWords() }

// letGoOfMemory has the VM's memory end with QEMU and virtiofsd.
func (v *vmm) letGoOfMemory() {
	if v.memory != nil {
		_ = v.memory.Close() // nothing was written that could be lost
		v.memory = nil
	}
}

// vmProcess is QEMU or virtiofsd: a child of the monitor's, or QEMU of its keeper's.
type vmProcess struct {
	name   string
	pid    int           // zero for a keeper's
	done   chan struct{} // closed when it has been reaped
	status string        // how it ended, once done is closed
	tail   *tailBuffer   // the end of what it wrote to stderr
	kill   func()        // has it end; it may have ended already
	thread chan func()   // what the thread that it was forked from shall do; nil for a keeper's
}

// startProcess starts a helper process that dies with the monitor and sees files
// as fds 3 and up. The function confine runs on the thread that the process is
// forked from, takes away what it shall not have, and may have the fork do more.
//
// The parent-death signal is tied to the thread that forks (prctl(2)), so each
// child has a thread of the monitor's for itself, which stays as long as the child.
func startProcess(name, path string, args []string, confine func(*syscall.SysProcAttr) error, log *slog.Logger, files ...*os.File) (*vmProcess, error) {
	p := &vmProcess{name: name, done: make(chan struct{}), tail: &tailBuffer{limit: 4 << 10}, thread: make(chan func())}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		defer close(p.done)
		cmd := exec.Command(path, args...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Dir = "/"
		cmd.ExtraFiles = files
		cmd.Stderr = p.tail
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		err := confine(cmd.SysProcAttr)
		if err == nil {
			err = partError("start "+name, cmd.Start())
		}
		if err != nil {
			started <- err
			return
		}
		p.pid, p.kill = cmd.Process.Pid, func() { _ = cmd.Process.Kill() }
		started <- nil
		ended := make(chan error)
		go func() { ended <- cmd.Wait() }()
		for {
			select {
			case f := <-p.thread:
				f()
			case err := <-ended:
				p.status = errText(err)
				log.Debug("process ended", "name", name, "pid", p.pid, "status", p.status, "stderr", p.tail.String())
				return
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// onThread runs f on the thread that the process was forked from.
func (p *vmProcess) onThread(f func() error) error {
	result := make(chan error, 1)
	select {
	case p.thread <- func() { result <- f() }:
		return <-result
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.name, p.status)
	}
}

// runAsBatch makes the calling thread, and what it executes, SCHED_BATCH if it
// has the ordinary policy: it does not interrupt others of that when it wakes up
// (sched(7)). QEMU's threads otherwise interrupt each other. The one that takes a
// spin lock of the guest's wakes the other up, is interrupted by it, and is then
// waited for with all the power that the emulator has.
func runAsBatch() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return err
	}
	attr.Policy = unix.SCHED_BATCH
	return unix.SchedSetAttr(0, attr, 0)
}

// dropPrivileges takes the capability bounding set from the calling thread, so
// that what it executes has no capability though it is root, and no set-uid
// program gives it any.
func dropPrivileges() error {
	for c := 0; ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the kernel's last capability
		}
		if err != nil {
			return partError("drop capabilities", err)
		}
	}
	return noNewPrivileges()
}

// noNewPrivileges is for the calling thread and what it executes.
func noNewPrivileges() error {
	return partError("set no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// lastWords tells how the process ended, to be appended to an error; nothing if
// it still runs. A process whose socket has just closed gets a moment to be
// reaped.
func (p *vmProcess) lastWords() string {
	if p == nil {
		return ""
	}
	select {
	case <-p.done:
		return fmt.Sprintf(" (%s: %s: %s)", p.name, p.status, guestText(strings.TrimSpace(p.tail.String())))
	case <-time.After(reapGrace):
		return ""
	}
}

// reapGrace is how long the end of a process may follow that of its socket.
const reapGrace = 100 * time.Millisecond

func errText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// quoteCommand is a command line that can be pasted into a shell.
func quoteCommand(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, a := range args {
		b.WriteByte(' ')
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$&;|<>()*?#~`") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		b.WriteString(a)
	}
	return b.String()
}
