package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// deadline bounds a single command, unless E2E_DEADLINE (a duration) does. Emulated VMs on a busy machine are slow; only a
// hang should meet it.
var deadline = 2 * time.Minute

// A daemon is a dockerd, with a containerd, bridge and directories of its own.
type daemon struct {
	name           string
	dir            string // on disk: data root, configuration, log
	execRoot       string
	bridge         string
	gateway        string   // IPv4 of the bridge
	gateway6       string   // IPv6 of the bridge
	args           []string // more flags
	env            []string // more environment
	defaultRuntime string   // "" means runc
	configured     bool     // daemon.json is there already
	cmd            *exec.Cmd
}

// newDaemon describes a daemon whose bridge is net 10.199.N.0/24 and fd00:b0c5:N::/64.
func newDaemon(name string, n int) *daemon {
	return &daemon{
		name:     name,
		dir:      filepath.Join(workDir, "dockerd-"+name),
		execRoot: "/run/dockerd-" + name,
		bridge:   fmt.Sprintf("bxe2e%d", n),
		gateway:  fmt.Sprintf("10.199.%d.1", n),
		gateway6: fmt.Sprintf("fd00:b0c5:%d::1", n),
	}
}

func (d *daemon) socket() string  { return "/run/dockerd-" + d.name + ".sock" }
func (d *daemon) logPath() string { return filepath.Join(d.dir, "log") }

func (d *daemon) configPath() string { return filepath.Join(d.dir, "daemon.json") }

// start starts dockerd and returns when it answers. It may be called again after stop.
func (d *daemon) start() error {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/class/net/" + d.bridge); err != nil {
		// --bridge=none would delete the bridge of another daemon; this one is made beforehand.
		if err := sh(fmt.Sprintf("ip link add %[1]s type bridge && ip addr add %[2]s/24 dev %[1]s && ip -6 addr add %[3]s/64 dev %[1]s nodad && ip link set %[1]s up",
			d.bridge, d.gateway, d.gateway6)); err != nil {
			return err
		}
	}
	if !d.configured {
		if err := d.configure(); err != nil {
			return err
		}
	}
	logFile, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := append([]string{
		"--config-file", d.configPath(),
		"--data-root", filepath.Join(d.dir, "data"),
		"--exec-root", d.execRoot,
		"--pidfile", d.execRoot + ".pid",
		"--host", "unix://" + d.socket(),
		"--bridge", d.bridge, "--ipv6", "--fixed-cidr-v6", strings.TrimSuffix(d.gateway6, "1") + "/64",
		"--cgroup-parent", "/" + tag,
		"--live-restore",
	}, d.args...)
	d.cmd = exec.Command("dockerd", args...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(d.cmd)
	// dockerd tells its readiness to systemd only; ask until it answers.
	for giveUp := time.After(time.Minute); ; {
		if r := d.try(nil, "version"); r.code == 0 {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("dockerd ended: %v\n%s", err, d.logSince(0))
		case <-giveUp:
			return fmt.Errorf("dockerd does not answer\n%s", d.logSince(0))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// configure writes daemon.json.
func (d *daemon) configure() error {
	config := map[string]any{"runtimes": map[string]any{}}
	for _, rt := range runtimes {
		if rt.name != "runc" { // which dockerd knows by itself
			config["runtimes"].(map[string]any)[rt.name] = map[string]any{"path": rt.bin}
		}
		config["runtimes"].(map[string]any)[rt.name+"-debug"] = map[string]any{"path": rt.bin, "runtimeArgs": []string{"--debug"}}
	}
	if d.defaultRuntime != "" {
		config["default-runtime"] = d.defaultRuntime
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(d.configPath(), text, 0o644)
}

// major is the first number of the daemon's version.
func (d *daemon) major() int {
	r := d.try(nil, "version", "--format", "{{.Server.Version}}")
	first, _, _ := strings.Cut(r.stdout, ".")
	n, err := strconv.Atoi(first)
	if err != nil {
		panic(fmt.Sprintf("version of dockerd: %v: %s", err, r))
	}
	return n
}

// stop ends dockerd; with live-restore its containers go on.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return waitFor("dockerd ends", func() bool {
		return errors.Is(syscall.Kill(d.cmd.Process.Pid, 0), syscall.ESRCH)
	})
}

// importImage makes the image busybox, with the probe in it, from the root file system built for the run.
func (d *daemon) importImage() error {
	tar := exec.Command("tar", "-C", filepath.Join(workDir, "rootfs"), "-c", ".")
	layer, err := tar.Output()
	if err != nil {
		return err
	}
	if r := d.try(bytes.NewReader(layer), "import", "--change", `CMD ["sh"]`, "-", "busybox"); r.code != 0 {
		return fmt.Errorf("import: %s", r)
	}
	// The first container makes dockerd and containerd create directories that stay.
	if r := d.try(nil, "run", "--rm", "--runtime", "runc", "busybox", "true"); r.code != 0 {
		return fmt.Errorf("first container: %s\n%s", r, d.logSince(0))
	}
	return nil
}

func (d *daemon) logSize() int64 {
	fi, err := os.Stat(d.logPath())
	if err != nil {
		return 0
	}
	return fi.Size()
}

// logSince gives the end of what dockerd logged after its log had that size.
func (d *daemon) logSince(size int64) string {
	text, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	text = text[min(size, int64(len(text))):]
	return "dockerd's log:\n" + string(text[max(0, len(text)-6000):])
}

// A result is what a command wrote and how it ended.
type result struct {
	args   []string
	stdout string
	stderr string
	code   int // -1 when a signal or the deadline ended it
	took   time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%s\nexit code %d after %.1f s\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.took.Seconds(), clip(r.stdout), clip(r.stderr))
}

func clip(s string) string {
	if len(s) > 4000 {
		return s[:2000] + " ... " + s[len(s)-2000:]
	}
	return s
}

// command is docker with args, on this daemon.
func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, dockerBin, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.socket(), "DOCKER_CONFIG="+d.dir)
	return cmd
}

func (d *daemon) runFlags(rt ociRuntime) []string { return []string{"--runtime", rt.name} }

// try runs docker to its end; stdin may be nil.
func (d *daemon) try(stdin io.Reader, args ...string) result { return try(d, stdin, args...) }

// finish runs cmd and collects its output. A result with code -1 says in stderr why.
func finish(ctx context.Context, cmd *exec.Cmd) result {
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	cmd.WaitDelay = 10 * time.Second // then somebody still holds its output: os/exec reports it
	began := time.Now()
	err := cmd.Run()
	r := result{args: cmd.Args, stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.code, r.stderr = -1, r.stderr+"\n[killed: the deadline passed]"
	case err == nil:
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
		if r.code < 0 {
			r.stderr += "\n[" + exit.String() + "]"
		}
	default:
		r.code, r.stderr = -1, r.stderr+"\n["+err.Error()+"]"
	}
	return r
}

// waitFor polls where no event exists, until cond holds.
func waitFor(what string, cond func() bool) error {
	for giveUp := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(giveUp) {
			return fmt.Errorf("%s: did not happen within a minute", what)
		}
	}
	return nil
}
