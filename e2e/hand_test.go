package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A hand drives a runtime through its command line, as containerd's shim does, on state and bundles of its own.
type hand struct {
	*env
	root  string   // the runtime's --root; "" leaves the flag out
	flags []string // more global flags
	vars  []string // environment of the commands
}

func (e *env) byHand() *hand {
	h := &hand{env: e, root: "/run/byhand", vars: os.Environ()}
	e.Cleanup(func() { e.noErr(os.RemoveAll("/run/byhand")) })
	return h
}

func (h *hand) argv(args ...string) []string {
	if h.root != "" {
		args = append([]string{"--root", h.root}, args...)
	}
	return slices.Concat([]string{h.rt.bin}, h.flags, args)
}

// cmd runs a command of the runtime to its end. Its output must be closed by then: what outlives it holds neither.
func (h *hand) cmd(args ...string) result {
	return h.cmdIn(nil, args...)
}

func (h *hand) cmdIn(stdin io.Reader, args ...string) result {
	return h.finish(stdin, h.argv(args...))
}

// cmdAs is cmd behind a program that changes what the caller is, such as setpriv.
func (h *hand) cmdAs(changer []string, args ...string) result {
	return h.finish(nil, slices.Concat(changer, h.argv(args...)))
}

func (h *hand) finish(stdin io.Reader, argv []string) result {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = h.vars
	c.Stdin = stdin
	return finish(ctx, c)
}

// must is cmd of what has to succeed; it returns stdout.
func (h *hand) must(args ...string) string {
	h.Helper()
	r := h.cmd(args...)
	if r.code != 0 {
		h.Fatalf("%s", r)
	}
	return r.stdout
}

// state is the runtime's state of a container, as callers parse it.
type state struct {
	specs.State
	Rootfs  string `json:"rootfs"`
	Created string `json:"created"`
	Owner   string `json:"owner"`
	// Template is boxlite's own.
	Template string `json:"template"`
}

func (h *hand) state(id string) state {
	h.Helper()
	var s state
	if err := json.Unmarshal([]byte(h.must("state", id)), &s); err != nil {
		h.Fatalf("state %s: %v", id, err)
	}
	return s
}

func (h *hand) wantStatus(id string, want specs.ContainerState) {
	h.Helper()
	if got := h.state(id).Status; got != want {
		h.Errorf("status of %s = %q, want %q", id, got, want)
	}
}

// waitStatus polls: the end of a container is an event for the caller's reaper only.
func (h *hand) waitStatus(id string, want specs.ContainerState) {
	h.Helper()
	if err := waitFor(fmt.Sprintf("status %q of %s", want, id), func() bool { return h.state(id).Status == want }); err != nil {
		h.Fatal(err)
	}
}

// A bundle is a directory with a root file system and a config.json, removed when the case ends.
type bundle struct {
	id  string // for the container, and as the last part of its cgroup
	dir string
}

func (b bundle) rootfs(path string) string { return filepath.Join(b.dir, "rootfs", path) }

// bundle makes one whose process is sh -c script, with spec changed by edit, which may be nil.
func (h *hand) bundle(name, script string, edit func(*specs.Spec)) bundle {
	h.Helper()
	b := bundle{id: tag + "-" + name, dir: filepath.Join(workDir, "bundle-"+name)}
	h.noErr(sh(fmt.Sprintf("mkdir %s && cp -a %s/rootfs %[1]s/rootfs", b.dir, workDir)))
	spec := defaultSpec(b.id, "sh", "-c", script)
	if edit != nil {
		edit(spec)
	}
	h.writeSpec(b, spec)
	h.Cleanup(func() {
		if r := h.cmd("delete", "--force", b.id); r.code != 0 {
			h.Errorf("delete after the case: %s", r)
		}
		h.noErr(os.RemoveAll(b.dir))
	})
	return b
}

func (h *hand) writeSpec(b bundle, spec *specs.Spec) {
	h.Helper()
	text, err := json.MarshalIndent(spec, "", "\t")
	h.noErr(err)
	h.noErr(os.WriteFile(filepath.Join(b.dir, "config.json"), text, 0o644))
}

// defaultSpec is what runc spec writes, without a terminal, plus a cgroup below the run's own.
func defaultSpec(id string, args ...string) *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"}
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: args,
			Env:  []string{"PATH=/bin", "TERM=xterm"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
			NoNewPrivileges: true,
		},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "by-hand",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + tag + "/" + id,
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// A created container, below a reaper.
type created struct {
	h      *hand
	id     string
	bundle bundle
	reaper *reaper
	pid    int // of the stand-in, from the pid file
	out    *collected
	errs   *collected
}

// collected reads a pipe to its end.
type collected struct {
	w    *os.File
	done chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

func (h *hand) collect() *collected {
	h.Helper()
	r, w, err := os.Pipe()
	h.noErr(err)
	c := &collected{w: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer r.Close()
		_, _ = io.Copy(c, r) // a case sees what is missing
	}()
	return c
}

// Write collects output.
func (c *collected) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *collected) sofar() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// wait returns everything once nobody holds the pipe any more.
func (c *collected) wait() string {
	<-c.done
	return c.sofar()
}

// expect waits until text has come.
func (h *hand) expect(c *collected, text string) {
	h.Helper()
	if err := waitFor(fmt.Sprintf("output %q", text), func() bool { return strings.Contains(c.sofar(), text) }); err != nil {
		h.Fatalf("%v: %q", err, c.sofar())
	}
}

// create runs create with --pid-file and more flags, which must succeed. Whatever the container writes is collected.
func (h *hand) create(b bundle, flags ...string) *created {
	h.Helper()
	c := &created{h: h, id: b.id, bundle: b, out: h.collect(), errs: h.collect()}
	c.reaper = startReaper(h.T, reaperJob{Args: h.createArgs(b, flags...), Env: h.vars, Dir: b.dir}, [3]*os.File{nil, c.out.w, c.errs.w})
	h.noErr(c.out.w.Close())
	h.noErr(c.errs.w.Close())
	if end := c.reaper.wait(0); end.Code != 0 {
		h.Fatalf("create: %v: %s%s", end, c.out.wait(), c.errs.wait())
	}
	c.pid = h.readPid(b.pidFile())
	return c
}

func (b bundle) pidFile() string { return filepath.Join(b.dir, "pid") }

func (h *hand) createArgs(b bundle, flags ...string) []string {
	args := append([]string{"create", "--bundle", b.dir, "--pid-file", b.pidFile()}, flags...)
	return h.argv(append(args, b.id)...)
}

func (h *hand) readPid(path string) int {
	h.Helper()
	text, err := os.ReadFile(path)
	h.noErr(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	h.noErr(err)
	return pid
}

// start runs start, which must succeed.
func (c *created) start() {
	c.h.Helper()
	c.h.must("start", c.id)
}

// end waits for the stand-in's end.
func (c *created) end() reaped {
	c.h.Helper()
	return c.reaper.wait(c.pid)
}

// wantKilled waits for the stand-in's end, which is that of a SIGKILL.
func (c *created) wantKilled() {
	c.h.Helper()
	if end := c.end().String(); end != "killed by killed" && end != "exit code 137" {
		c.h.Errorf("stand-in: %s, want killed or 137", end)
	}
}

// cmdline is a command of the runtime, to be started.
func (h *hand) cmdline(args ...string) *exec.Cmd {
	argv := h.argv(args...)
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = h.vars
	return c
}

// wantFail runs a command that must fail with 1 and say on stderr, in one error, what the expression matches.
func (h *hand) wantFail(expression string, args ...string) {
	h.Helper()
	r := h.cmd(args...)
	h.wantCode(r, 1)
	if !regexp.MustCompile(expression).MatchString(r.stderr) {
		h.Errorf("stderr does not match %q: %s", expression, r)
	}
	errorLines := 0
	for line := range strings.Lines(r.stderr) {
		switch {
		case strings.Contains(line, " level=error "):
			errorLines++
		case !strings.HasPrefix(line, "time="):
			h.Errorf("%q is no line of a log: %s", line, r)
		}
	}
	if errorLines != 1 {
		h.Errorf("%d errors, want one: %s", errorLines, r)
	}
}
