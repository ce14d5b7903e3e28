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

	"boxlite/internal/guestproto"
	"boxlite/internal/trace"
	"boxlite/libvm/accel"
	"boxlite/libvm/parts"
	"boxlite/libvm/qmp"
	"boxlite/libvm/template"
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

	spare spareEnds
}

// vmmFiles are the directories and files that a VMM needs of its caller.
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

// startVMM starts QEMU and virtiofsd beside it. The VM boots, or with from is
// made a copy of a template, and has no share yet. A copy for standby stands still.
// startVMM must be called before the monitor leaves the host's file systems. The
// caller stops the VMM; a failed start leaves nothing.
func startVMM(p *parts.Parts, cfg vmConfig, files vmmFiles, from *template.Template, steps *trace.Recorder, log *slog.Logger) (v *vmm, err error) {
	v = &vmm{log: log}
	var lent []*os.File // the children's ends; closed here once they run, so that their end shows
	defer func() {
		closeAll(lent)
		if err != nil {
			v.kill()
		}
	}()

	listener, client, err := shareSocket()
	if err != nil {
		return v, fmt.Errorf("socket for virtiofsd: %w", err)
	}
	lent = append(lent, listener, client)
	var conns [3]*net.UnixConn
	inherited := []*os.File{client}
	for i := range conns {
		var theirs *os.File
		if conns[i], theirs, err = qmp.Socketpair(); err != nil {
			return v, partError("sockets to QEMU", err)
		}
		inherited, lent = append(inherited, theirs), append(lent, theirs)
	}
	v.control = conns[0]
	cfg.incoming = from != nil
	if files.scratch != nil {
		inherited, cfg.scratch = append(inherited, files.scratch), true
	}
	if cfg.standby {
		var theirs *os.File
		if v.spare.qmp, theirs, err = qmp.Socketpair(); err != nil {
			return v, partError("sockets to QEMU", err)
		}
		inherited, lent = append(inherited, theirs), append(lent, theirs)
	}
	args := cfg.args()
	log.Debug("starting QEMU", "command", quoteCommand(p.QEMU, args))
	room := &cell{
		dir: files.root, program: p.QEMU, images: []string{cfg.kernel, cfg.initramfs}, memoryMiB: cfg.memoryMiB, kvm: cfg.accel == accel.KVM, log: log,
	}
	if cfg.firmware != "" {
		room.images = append(room.images, cfg.firmware)
	}
	if room.who, err = qemuIdentity(); err != nil {
		return v, partError("look for a user for QEMU", err)
	}
	confineQEMU := func(attr *syscall.SysProcAttr) (err error) {
		if cfg.accel == accel.TCG {
			if err := runAsBatch(); err != nil { // slower beside others, no more
				log.Debug("QEMU keeps its scheduling policy", "error", err)
			}
		}
		v.memory, err = room.enter(attr)
		return err
	}
	spawned := steps.Begin("start QEMU and virtiofsd")
	if v.qemu, err = startProcess("QEMU", p.QEMU, args, confineQEMU, log, inherited...); err != nil {
		return v, err
	}
	if files.share != "" {
		if v.virtiofsd, err = startVirtiofsd(p.Virtiofsd, files, log, listener); err != nil {
			return v, err
		}
	}
	spawned()
	closeAll(lent)
	lent = nil
	v.console = newGuestConsole(conns[2])
	go v.console.copy(files.console)
	copied := make(chan error, 1)
	if from != nil {
		go func() { // while QEMU starts
			defer steps.Begin("copy the template's memory")()
			copied <- from.CopyMemory(v.memory)
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answered := steps.Begin("await QEMU's first word")
	v.qmp, err = qmp.New(ctx, conns[1])
	answered()
	if err != nil {
		return v, fmt.Errorf("QEMU did not come up: %w%s%s", err, v.qemu.lastWords(), v.virtiofsd.lastWords())
	}
	emptied := make(chan error, 1)
	go func() { // while the state is loaded
		defer steps.Begin("empty QEMU's root")()
		emptied <- v.qemu.onThread(emptyRoot)
	}()
	if from != nil {
		if err = <-copied; err == nil {
			loaded := steps.Begin("load the VM's state")
			err = v.load(from.State)
			loaded()
		}
	}
	err = cmp.Or(err, <-emptied)
	if err == nil && from != nil && !cfg.standby {
		err = v.proceed() // it was saved while it stood still
	}
	return v, err
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

// plugShare gives the VM its share. A guest that has not come to look for devices
// yet will find it as if it had been there from the beginning.
func (v *vmm) plugShare() error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return v.qmp.Execute(ctx, "device_add", map[string]any{
		"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "queue-size": 1024, "tag": guestproto.ShareTag, "bus": portID(sharePort),
	}, nil)
}

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
			err = partErrorOrNil("start "+name, cmd.Start())
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
	return partErrorOrNil("set no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
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
