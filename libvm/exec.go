package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/lockdown"
	"github.com/boxlite-oci/boxlite/libvm/self"
)

// ExecOptions are the arguments of Exec and ExecDetached. Only Process is required.
type ExecOptions struct {
	// Process is the OCI process object to run.
	Process *specs.Process
	// Cgroup is a path below the container's cgroup. Empty means the container's
	// cgroup itself.
	Cgroup string
	// ConsoleSocket is the path of a listening unix socket, which receives the
	// master of a detached process's terminal.
	ConsoleSocket string
	// PidFile, if not empty, receives the pid of the host's process that stands for
	// the exec.
	PidFile string
	// PidfdSocket, if not empty, is a listening socket that receives a pidfd of
	// that process.
	PidfdSocket string
	// Stdio is what the process has for stdin, stdout and stderr.
	Stdio Stdio
	// IgnorePaused makes an exec in a paused container wait for the resume. Without
	// it such an exec fails, with an error that matches ErrPaused.
	IgnorePaused bool
}

// logDecided logs what is going to be executed, and how. The environment is left
// out: it may hold secrets.
func (c *Container) logDecided(opts ExecOptions, standIn string) {
	p := opts.Process
	c.rt.Log.Debug("decided", "id", c.ID, "command", p.Args, "cwd", p.Cwd, "uid", p.User.UID, "gid", p.User.GID, "terminal", p.Terminal,
		"cgroup", "/"+opts.Cgroup, "nullStdin", !p.Terminal && isNull(opts.Stdio.Stdin), "paused", c.Paused, "standIn", standIn)
}

func (o *ExecOptions) params() *execParams {
	return &execParams{Process: o.Process, Cgroup: o.Cgroup, IgnorePaused: o.IgnorePaused}
}

// Exec runs a further process in the container with the calling process
// standing for it: signals it receives go to the guest's process, and Exec
// returns when that has ended. With a terminal, the one that the caller sits at is in
// raw mode meanwhile, and data comes and goes through Stdio.
func (c *Container) Exec(opts ExecOptions) (guestproto.ExitStatus, error) {
	if opts.PidFile != "" {
		if err := replaceFile(opts.PidFile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return guestproto.ExitStatus{}, fmt.Errorf("pid file: %w", err)
		}
	}
	if opts.PidfdSocket != "" {
		if err := sendPidfd(os.Getpid(), opts.PidfdSocket); err != nil {
			return guestproto.ExitStatus{}, err
		}
	}
	c.logDecided(opts, "the caller")
	stdio := opts.Stdio
	var tty *os.File
	if opts.Process.Terminal {
		var err error
		if tty, err = callersTerminal(stdio); err != nil {
			return guestproto.ExitStatus{}, err
		}
		restore, err := rawTerminal(tty)
		if err != nil {
			return guestproto.ExitStatus{}, err
		}
		defer restore()
		c.rt.Log.Debug("the caller's terminal is in raw mode", "id", c.ID, "terminal", tty.Name())
		stdio = Stdio{Stdin: stdio.Stdin, Stdout: stdio.Stdout}
		if w, h, err := windowSize(tty); err == nil { // from the process's first moment
			process := *opts.Process
			process.ConsoleSize = &specs.Box{Width: uint(w), Height: uint(h)}
			opts.Process = &process
		}
	}
	signals := catchSignals()
	asked := c.rt.Trace.Begin("exec: ask the monitor")
	x, err := startExec(c.monitorDir(), controlRequest{Op: controlExec, Member: c.member(), Exec: opts.params()}, stdio, tty)
	asked()
	if err != nil {
		return guestproto.ExitStatus{}, err
	}
	defer x.conn.Close()
	defer c.rt.Trace.Begin("exec: until the process has ended")()
	status, err := x.wait(signals)
	c.rt.Log.Debug("the exec's process has ended", "id", c.ID, "code", status.Code, "signal", status.Signal, "error", err)
	return status.ExitStatus, err
}

// ExecDetached starts a further process in the container, and a process of the host
// that stands for it and outlives the call. It returns when the guest has executed
// the process.
func (c *Container) ExecDetached(opts ExecOptions) error {
	defer c.rt.Trace.Begin("exec: start the process that stands for it")()
	c.logDecided(opts, "a process of its own")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fault.Wrap("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "exec process"), os.NewFile(uintptr(pair[1]), "exec")
	defer ours.Close()
	cmd, err := self.Command(c.rt.SelfArgs, opts.Process.Args, "exec-process", c.ID)
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdioOf(opts.Stdio.Stdin), stdioOf(opts.Stdio.Stdout), stdioOf(opts.Stdio.Stderr)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A program of several threads cannot enter a user namespace, and no other
	// namespace of it without. The end of the monitor ends the exec all the same.
	var join []specs.LinuxNamespace
	if !c.OwnUserNS {
		join = namespacesOf(c.Pid)
	}
	c.rt.Log.Debug("the exec's stand-in joins the container's namespaces", "id", c.ID, "join", namespaceTypes(join))
	err = startIn(cmd, 0, join)
	if err := errors.Join(err, theirs.Close()); err != nil {
		return err
	}
	if err := c.commitExec(ours, cmd.Process.Pid, opts); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return nil
}

func namespaceTypes(list []specs.LinuxNamespace) []specs.LinuxNamespaceType {
	var types []specs.LinuxNamespaceType
	for _, ns := range list {
		types = append(types, ns.Type)
	}
	return types
}

// execConfig is what ExecDetached tells the process that it has started.
type execConfig struct {
	MonitorDir    string      `json:"monitorDir"`
	Member        string      `json:"member,omitempty"` // of a pod
	Mounts        string      `json:"mounts,omitempty"` // the mount namespace to enter
	Exec          *execParams `json:"exec"`
	ConsoleSocket string      `json:"consoleSocket,omitempty"`
}

func (c *Container) commitExec(sync *os.File, pid int, opts ExecOptions) error {
	if c.Cgroup != nil {
		cg, err := hostcgroup.Load(*c.Cgroup)
		if err != nil {
			return cgroupError(err)
		}
		if err := cg.Apply(pid); err != nil {
			return cgroupError(err)
		}
	}
	cfg := execConfig{MonitorDir: c.monitorDir(), Member: c.member(), Exec: opts.params(), ConsoleSocket: opts.ConsoleSocket}
	cfg.Exec.Detached = true
	if !c.OwnUserNS {
		cfg.Mounts = fmt.Sprintf("/proc/%d/ns/mnt", c.Pid)
	}
	if err := guestproto.WriteFrame(sync, cfg); err != nil {
		return fault.Wrap("configure the exec process", err)
	}
	var ev monitorEvent
	if err := guestproto.ReadFrame(sync, guestproto.MaxReply, &ev); err != nil {
		return fault.Wrap("the exec process has ended", err)
	}
	if ev.Event != eventReady {
		return ev.Error.err()
	}
	if opts.PidfdSocket != "" {
		if err := sendPidfd(pid, opts.PidfdSocket); err != nil {
			return err
		}
	}
	if opts.PidFile != "" {
		if err := replaceFile(opts.PidFile, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("pid file: %w", err)
		}
	}
	return guestproto.WriteFrame(sync, monitorEvent{Event: eventCommitted})
}

// RunExec is the life of the process that ExecDetached starts. It must run on
// the process's main thread, and returns the status to exit with.
func RunExec(sync *net.UnixConn, log *slog.Logger) int {
	signals := catchSignals()
	loadTimeZone()
	x, err := beginExec(sync)
	if err == nil {
		if x.tty == nil {
			_ = os.Stderr.Close() // nothing is said here any more
		}
		if err = fault.Wrap("give up privileges", lockdown.Enter()); err != nil {
			err = errors.Join(err, x.conn.Close()) // which ends the guest's process
		}
	}
	if err != nil {
		_ = guestproto.WriteFrame(sync, monitorEvent{Event: eventFailed, Error: toControlError(err)}) // the caller may have gone
		return 255
	}
	defer x.conn.Close()
	var ev monitorEvent
	if err := errors.Join(guestproto.WriteFrame(sync, monitorEvent{Event: eventReady}), guestproto.ReadFrame(sync, guestproto.MaxReply, &ev)); err != nil {
		return 255 // nobody knows of the process: closing the connection ends it
	}
	_ = sync.Close()
	status, err := x.wait(signals)
	log.Debug("the exec's process has ended", "code", status.Code, "signal", status.Signal, "error", err)
	return status.Shell()
}

// beginExec starts the guest's process for RunExec.
func beginExec(sync *net.UnixConn) (*execSession, error) {
	var cfg execConfig
	if err := guestproto.ReadFrame(sync, guestproto.MaxRequest, &cfg); err != nil {
		return nil, fmt.Errorf("exec process: read configuration: %w", err)
	}
	stdio := Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	var slave *os.File
	if cfg.Exec.Process.Terminal {
		var err error
		if slave, err = openConsole(cfg.ConsoleSocket, cfg.Exec.Process.ConsoleSize); err != nil {
			return nil, err
		}
		stdio = Stdio{Stdin: slave, Stdout: slave}
	}
	req := controlRequest{Op: controlExec, Member: cfg.Member, Exec: cfg.Exec}
	if cfg.Mounts == "" {
		return startExec(cfg.MonitorDir, req, stdio, slave)
	}
	mounts, err := os.Open(cfg.Mounts)
	if err != nil {
		return nil, ErrNotRunning
	}
	x, err := startExec(cfg.MonitorDir, req, stdio, slave)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(enterMounts(mounts), mounts.Close()); err != nil {
		return nil, errors.Join(err, x.conn.Close())
	}
	return x, nil
}

// execSession is an exec's connection to the monitor.
type execSession struct {
	conn *net.UnixConn
	tty  *os.File // nil without a terminal
}

// startExec asks the monitor at dir to execute a process with
// copies of stdio's descriptors. This process gives up its own but for stderr, where
// it says what goes wrong later, so that a reader of stdout sees the end when the
// guest's process has closed it. A process with a terminal has the size of tty.
func startExec(dir string, req controlRequest, stdio Stdio, tty *os.File) (*execSession, error) {
	files := handedOver(stdio, tty)
	conn, _, err := dialControl(dir, req, files...)
	if err != nil {
		return nil, commandError(err)
	}
	return newExecSession(conn, tty, files), nil
}

// handedOver are the files that the monitor shall have copies of.
func handedOver(stdio Stdio, tty *os.File) []*os.File {
	files := []*os.File{stdio.Stdin, stdio.Stdout}
	if tty == nil {
		files = append(files, stdio.Stderr)
	}
	return files
}

// newExecSession is for a connection over which the monitor has got the files.
func newExecSession(conn *net.UnixConn, tty *os.File, files []*os.File) *execSession {
	x := &execSession{conn: conn, tty: tty}
	if tty == nil {
		fdpass.CloseAll(files[:2])
	} else {
		x.resize() // errors show again with the next change of size
	}
	return x
}

func (x *execSession) resize() {
	if w, h, err := windowSize(x.tty); err == nil && w > 0 && h > 0 {
		_ = guestproto.WriteFrame(x.conn, execMessage{Resize: &[2]int{int(w), int(h)}}) // an ended connection shows in wait
	}
}

// wait forwards signals until the process has ended. A VM that ends first ends
// the process too, as a kill does.
func (x *execSession) wait(signals <-chan os.Signal) (execEnd, error) {
	exit := make(chan execEnd, 1)
	go func() {
		var e execEnd
		if err := guestproto.ReadFrame(x.conn, guestproto.MaxReply, &e); err != nil {
			e.Error = toControlError(ErrVMLost)
		}
		exit <- e
	}()
	defer signal.Reset()
	for {
		select {
		case e := <-exit:
			if err := e.Error.err(); err != nil {
				return execEnd{ExitStatus: guestproto.ExitStatus{Signal: int(unix.SIGKILL)}}, err
			}
			return e, nil
		case s := <-signals:
			if s == unix.SIGWINCH && x.tty != nil {
				x.resize()
				continue
			}
			_ = guestproto.WriteFrame(x.conn, execMessage{Signal: int(s.(syscall.Signal))}) // an ended connection shows above
		}
	}
}
