package isolate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain has the test binary be the stages too.
func TestMain(m *testing.M) {
	if os.Args[0] == StageName {
		Stage()
	}
	os.Exit(m.Run())
}

// inMountNamespace runs f in a mount namespace of its own.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts and cgroups")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// A hierarchy that is mounted twice, in a chroot's /sys say, is isolated as one that is mounted once: where a program can
// see it as well as where it cannot.
func TestIsolatedWithHierarchiesMountedTwice(t *testing.T) {
	visible, err := os.MkdirTemp("/var/tmp", "boxlite-isolated-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(visible)
	covered := t.TempDir() // the program has a /tmp of its own
	const program = "program"
	if err := os.WriteFile(filepath.Join(visible, program), []byte("#!/bin/sh\ncut -d : -f 3 /proc/self/cgroup | sort -u; ls -d "+visible+"/*/boxlite-isolated-* 2>/dev/null; true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	inMountNamespace(t, func() {
		before, err := CgroupMounts()
		if err != nil || len(before) == 0 {
			t.Errorf("CgroupMounts = %v, %v", before, err)
			return
		}
		for i, h := range before {
			for _, dir := range []string{filepath.Join(visible, fmt.Sprint(i)), filepath.Join(covered, fmt.Sprint(i))} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Error(err)
					return
				}
				if err := unix.Mount(h.dir, dir, "", unix.MS_BIND, ""); err != nil {
					t.Error(err)
					return
				}
			}
		}
		var out, errs bytes.Buffer
		err = Job{Path: filepath.Join(visible, program), Args: []string{program}, Dir: visible, Timeout: time.Minute, Stdout: &out, Stderr: &errs}.Run()
		if err != nil {
			t.Errorf("Run = %v: %s%s", err, out.String(), errs.String())
		}
		if out.String() != "/\n" {
			t.Errorf("the program sees %q, want the root of each hierarchy for its own cgroup, and no cgroup of its name below", out.String())
		}
	})
}

// What a program makes beside the hierarchies, on the tmpfs that has them with cgroup v1, is not on the host.
func TestIsolatedBesideTheHierarchies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts and cgroups")
	}
	var out, errs bytes.Buffer
	script := "mkdir /sys/fs/cgroup/of-the-program"
	err := Job{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Dir: "/", Timeout: time.Minute, Stdout: &out, Stderr: &errs}.Run()
	if err != nil {
		t.Errorf("Run = %v: %s%s", err, out.String(), errs.String())
	}
	if err := os.Remove("/sys/fs/cgroup/of-the-program"); err == nil {
		t.Error("the program's directory was on the host")
	}
}
