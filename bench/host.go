package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A subject is a runtime that is measured: a program with global flags.
type subject struct {
	name  string
	bin   string
	flags []string
	// settle waits until it is as before a container that has been started; nil for at once.
	settle func() error
}

// started is to be called after each container.
func (s subject) started() error {
	if s.settle == nil {
		return nil
	}
	return s.settle()
}

// The two ways of boxlite to start a container.
const (
	warm = "boxlite"      // as a copy of a saved VM
	cold = "boxlite-cold" // by booting one
)

// withScratch is a runtime of dockerd's: boxlite with a scratch disk at /scratch.
const withScratch = "boxlite-scratch"

// host is what the containers run on: the namespaces of this process, bundles, and a dockerd.
type host struct {
	work     string
	tag      string // name of the cgroup that holds everybody's
	subjects []subject
	busybox  string
	load     string // the program of bench/load
	bare     string // an initramfs of it
	commands commands
	template string // key of the saved VM that ordinary containers start from
}

const dockerSocket = "unix:///run/docker.sock"

func newHost(work string, o options) (*host, error) {
	h := &host{work: work, tag: filepath.Base(work)}
	var err error
	for name, path := range map[*string]string{&h.load: o.load, &h.bare: o.bare, &o.boxlite: o.boxlite} {
		if *name, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(*name); err != nil {
			return nil, fmt.Errorf("%w (make bench builds it)", err)
		}
	}
	for _, name := range []string{"runc", "crun", "runsc"} {
		bin, err := exec.LookPath(name)
		if err != nil {
			fmt.Printf("%s is not installed and not measured\n", name)
			continue
		}
		s := subject{name: name, bin: bin}
		if name == "runsc" { // it cannot find its own cgroups on a hybrid host, and needs none here
			s.flags = []string{"--ignore-cgroups", "--network=none"}
		}
		h.subjects = append(h.subjects, s)
	}
	h.subjects = append(h.subjects,
		subject{name: cold, bin: o.boxlite, flags: []string{"--template", "off"}},
		subject{name: warm, bin: o.boxlite})
	if h.busybox, err = exec.LookPath("busybox"); err != nil {
		return nil, err
	}
	if err := makeNamespaces(); err != nil {
		return nil, err
	}
	if err := h.makeRootfs(); err != nil {
		return nil, err
	}
	if h.template, err = h.boxlite().run("template", "create", "--kernel", "lean"); err != nil {
		return nil, err
	}
	if h.commands, err = boxliteCommands(h); err != nil {
		return nil, err
	}
	if !o.programs {
		s, _, err := h.startStandby(o.boxlite, 1) // it ends with this process
		if err != nil {
			return nil, err
		}
		h.subjects = append(h.subjects, s)
	}
	return h, h.startDocker()
}

// docker gives the subjects that dockerd drives: the runtime that is its default, and boxlite.
func (h *host) docker() []subject {
	return slices.DeleteFunc(slices.Clone(h.subjects), func(s subject) bool { return s.name == "crun" || s.name == "runsc" })
}

// boxlite is it as its users have it.
func (h *host) boxlite() subject { return h.subject(warm) }

func (h *host) subject(name string) subject {
	return h.subjects[slices.IndexFunc(h.subjects, func(s subject) bool { return s.name == name })]
}

// makeNamespaces fits /proc, /sys and /run to the new namespaces.
func makeNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	cgroups, err := unix.Open("/sys/fs/cgroup", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for _, m := range []struct{ fstype, target string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.fstype, m.target, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", cgroups), "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind cgroups: %w", err)
	}
	// On a hybrid host crun refuses to run where cgroup v2 has controllers too.
	if err := unix.Unmount("/sys/fs/cgroup/unified", 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount the unified cgroups: %w", err)
	}
	_, err = output("sh", "-ec", `ip link set lo up
		ip link add bxbench0 type bridge
		ip addr add 10.197.0.1/24 dev bxbench0
		ip link set bxbench0 up
		echo 1 >/proc/sys/net/ipv4/ip_forward`)
	return err
}

// makeRootfs makes a root file system of busybox with three names, and load.
func (h *host) makeRootfs() error {
	_, err := output("sh", "-ec", `mkdir -p "$0"/bin "$0"/etc "$0"/dev "$0"/proc "$0"/sys "$0"/tmp
		cp "$1" "$0"/bin/busybox
		cp "$2" "$0"/load
		for name in sh true sleep; do ln -s busybox "$0"/bin/$name; done`, h.rootfs(), h.busybox, h.load)
	return err
}

func (h *host) rootfs() string { return filepath.Join(h.work, "rootfs") }

// bundle makes one for a process with args in a cgroup called id; "runc spec" says what else is in it.
func (h *host) bundle(id string, args ...string) (string, error) {
	dir := filepath.Join(h.work, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if _, err := output("runc", "spec", "--bundle", dir); err != nil {
		return "", err
	}
	return dir, editSpec(dir, func(spec *specs.Spec) {
		spec.Process.Args, spec.Process.Terminal = args, false
		spec.Root.Path, spec.Root.Readonly = h.rootfs(), false
		spec.Linux.CgroupsPath = "/" + h.tag + "/" + id
	})
}

// editSpec changes the config.json of a bundle.
func editSpec(bundle string, edit func(*specs.Spec)) error {
	path := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(raw, spec); err != nil {
		return err
	}
	edit(spec)
	if raw, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}

// startDocker starts a dockerd and gives it an image.
func (h *host) startDocker() error {
	runtimes := map[string]any{}
	for _, s := range h.docker() {
		if s.name != "runc" { // which dockerd has by itself
			runtimes[s.name] = map[string]any{"path": s.bin, "runtimeArgs": s.flags}
		}
	}
	runtimes[withScratch] = map[string]any{"path": h.boxlite().bin, "runtimeArgs": []string{"--scratch", "/scratch=10G"}}
	config, err := json.Marshal(map[string]any{"runtimes": runtimes})
	if err != nil {
		return err
	}
	file := filepath.Join(h.work, "daemon.json")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return err
	}
	for name, value := range map[string]string{"DOCKER_HOST": dockerSocket, "DOCKER_CONFIG": h.work} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	var log bytes.Buffer
	cmd := exec.Command("dockerd", "--config-file", file, "--data-root", filepath.Join(h.work, "docker"), "--exec-root", "/run/docker",
		"--pidfile", "/run/docker.pid", "--host", dockerSocket, "--bridge", "bxbench0", "--cgroup-parent", "/"+h.tag,
		"--exec-opt", "native.cgroupdriver=cgroupfs")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for giveUp := time.After(time.Minute); ; {
		if _, err := docker("version"); err == nil {
			break
		}
		select {
		case err := <-ended:
			return fmt.Errorf("dockerd: %w\n%s", err, log.String())
		case <-giveUp:
			return errors.New("dockerd does not answer")
		case <-time.After(100 * time.Millisecond): // it tells nobody but systemd when it is ready
		}
	}
	_, err = output("sh", "-ec", `tar -C "$0" -c . | /usr/bin/docker import - busybox`, h.rootfs())
	return err
}

// docker runs Debian's client, which fits Debian's daemon.
func docker(args ...string) (string, error) { return output("/usr/bin/docker", args...) }

// output runs a command that must succeed.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// removeCgroups removes the empty cgroups below those called tag.
func removeCgroups(tag string) error {
	var dirs []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, tag) {
			dirs = append(dirs, path)
		}
		return nil // another's may go away meanwhile
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}
