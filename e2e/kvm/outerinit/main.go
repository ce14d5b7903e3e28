// Outerinit is PID 1 of the outer virtual machine of the KVM tests: it makes a root file system out of the shares, runs
// the test's steps and powers off. What it prints goes to the console, which the test reads along.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/e2e/kvm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/kmod"
)

func main() {
	if os.Getpid() != 1 {
		if err := runSteps(); err != nil {
			fmt.Println("outerinit:", err)
			os.Exit(1)
		}
		return
	}
	err := kmod.LoadAll(guestproto.ModulesDir)
	if err == nil {
		err = makeRoot()
	}
	if err == nil {
		fmt.Println("outerinit: up")
		err = reapUntilDone()
	}
	if err != nil {
		fmt.Println("outerinit:", err)
	}
	fmt.Println("outerinit: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

const readOnly = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// The tree of the outer VM. Its root is a tmpfs and not the initramfs because pivot_root, which boxlite uses, refuses the latter.
var (
	mounts = []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"tmpfs", "/", "tmpfs", 0, "mode=0755"},
		{kvm.UsrTag, "/usr", "virtiofs", readOnly, ""},
		{kvm.BinTag, kvm.BoxliteDir, "virtiofs", readOnly, ""},
		{kvm.WorkTag, "/" + kvm.WorkTag, "virtiofs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", 0, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"tmpfs", "/run", "tmpfs", 0, ""},
		{"tmpfs", "/tmp", "tmpfs", 0, ""},
	}
	links = map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64"}
)

func makeRoot() error {
	const root = "/newroot" // which the archive has
	for _, m := range mounts {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, target, err)
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, root+name); err != nil {
			return err
		}
	}
	cache, err := os.ReadFile(filepath.Join(root, kvm.WorkTag, kvm.LinkerCache))
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(root+"/etc", 0o755), os.WriteFile(root+"/etc/ld.so.cache", cache, 0o644)); err != nil {
		return err
	}
	return errors.Join(unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

// reapUntilDone runs this program once more for the steps, and is meanwhile the parent of whatever loses its own, as
// boxlite's monitors do.
func reapUntilDone() error {
	steps, err := os.StartProcess("/proc/self/exe", []string{"outerinit"}, &os.ProcAttr{
		Env:   []string{"PATH=" + kvm.BoxliteDir + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == steps.Pid {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
	}
}

func runSteps() error {
	text, err := os.ReadFile(filepath.Join("/", kvm.WorkTag, kvm.StepsFile))
	if err != nil {
		return err
	}
	var steps []kvm.Step
	if err := json.Unmarshal(text, &steps); err != nil {
		return err
	}
	var results []kvm.Result
	for _, s := range steps {
		r, err := run(s)
		if err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
		fmt.Printf("outerinit: %s: exit %d after %v\n", r.Name, r.Code, r.Took.Round(time.Millisecond))
		results = append(results, r)
		text, err := json.Marshal(results)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("/", kvm.WorkTag, kvm.ResultsFile), text, 0o644); err != nil {
			return err
		}
		if r.Stalled() {
			return nil
		}
	}
	return nil
}

// run has the step write to files: a pipe would stay open for as long as a container that was only created.
func run(s kvm.Step) (kvm.Result, error) {
	stdout, stderr := filepath.Join("/tmp", s.Name+".out"), filepath.Join("/tmp", s.Name+".err")
	out, err := os.Create(stdout)
	if err != nil {
		return kvm.Result{}, err
	}
	defer out.Close()
	errs, err := os.Create(stderr)
	if err != nil {
		return kvm.Result{}, err
	}
	defer errs.Close()
	ctx, cancel := context.WithTimeout(context.Background(), kvm.StepLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "/bin/sh", "-c", s.Script)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(s.Stdin), out, errs
	begin := time.Now()
	err = c.Run()
	r := kvm.Result{Name: s.Name, Took: time.Since(begin)}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	r.Code = c.ProcessState.ExitCode()
	text, err := os.ReadFile(stdout)
	if err != nil {
		return r, err
	}
	r.Stdout = string(text)
	text, err = os.ReadFile(stderr)
	r.Stderr = string(text)
	return r, err
}
