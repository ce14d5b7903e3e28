package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// commandLimit is how long a command may take. A container of an emulated KVM takes ten seconds and more to start, as its QEMU does.
const commandLimit = 4 * time.Minute

// user is an ordinary one, with a systemd of their own, and the id that useradd gives the first.
const (
	user    = "user"
	userRun = "/run/user/1000"
)

// TestInsideBefore is what the machine does until its first end, TestInsideAfter what it finds when it is up again.
func TestInsideBefore(t *testing.T) {
	inside(t)
	setUp(t)
	t.Run("machine", testMachine)
	t.Run("unit tests of cgroups", func(t *testing.T) { t.Log(run(t, "./hostcgroup.test", "-test.v")) })
	t.Run("run", testRun)
	t.Run("limits", testLimits)
	t.Run("out of memory", testOutOfMemory)
	t.Run("live-restore", testLiveRestore)
	t.Run("quadlet", testQuadlet)
	t.Run("quadlet of a user", testUserQuadlet)
	t.Run("generated unit", testGeneratedUnit)
	// What the reboot shall find.
	run(t, "docker", "run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "infinity")
	run(t, "docker", "run", "-d", "--name", "on-failure", "--restart", "on-failure", "busybox", "sleep", "infinity")
	run(t, "docker", "run", "-d", "--name", "no", "busybox", "sleep", "infinity")
}

func TestInsideAfter(t *testing.T) {
	inside(t)
	for name, want := range map[string]string{"always": "running", "on-failure": "running", "no": "exited"} {
		eventually(t, name+" is "+want, func() error {
			return equal(run(t, "docker", "inspect", "-f", "{{.State.Status}}", name), want)
		})
	}
	wantGuest(t, run(t, "docker", "exec", "always", "uname", "-r"))
	wantGuest(t, run(t, "docker", "exec", "on-failure", "uname", "-r"))
	eventually(t, "quadlet.service is active", func() error { return equal(run(t, "sh", "-c", "systemctl is-active quadlet; true"), "active") })
	wantGuest(t, run(t, "podman", "exec", "quadlet", "uname", "-r"))
	eventually(t, "the user's quadlet.service is active", func() error { return equal(asUser(t, "systemctl --user is-active quadlet; true"), "active") })
	wantGuest(t, asUser(t, "podman exec quadlet uname -r"))

	// What ends leaves nothing of boxlite's.
	run(t, "docker", "rm", "-f", "always", "on-failure", "no")
	run(t, "systemctl", "stop", "quadlet")
	asUser(t, "systemctl --user stop quadlet")
	eventually(t, "nothing is left", func() error {
		return equal(run(t, "sh", "-c", left), "")
	})
}

// left prints what is of a container or its VM. One QEMU is the machine's own (idle-vm.service of images/host).
const left = `ls -A /run/boxlite 2>/dev/null | grep -v '^templates$'
pgrep -l 'boxlite|virtiofsd'
pgrep -l qemu-system | grep -v "^$(systemctl show -P MainPID idle-vm) "
find /sys/fs/cgroup -name 'docker-*.scope' -o -name 'libpod-*'
true`

// setUp has the engines know boxlite, as its users would, and gives both a busybox.
func setUp(t *testing.T) {
	run(t, "sh", "-c", `mkdir -p /etc/docker && echo '{"live-restore": true}' >/etc/docker/daemon.json`)
	run(t, "./boxlite", "install", "--docker", "--default", "--", "--vcpus", "1") // an inner VM of all the processors hardly boots: see e2e/kvm
	run(t, "./boxlite", "install", "--podman", "--default")
	run(t, "systemctl", "restart", "docker")
	run(t, "sh", "-ec", `
mkdir -p /root/rootfs/usr/bin /root/rootfs/etc /root/rootfs/tmp
cd /root/rootfs
cp /usr/bin/busybox usr/bin
ln -s usr/bin bin
busybox --install -s usr/bin 2>/dev/null || true # all but itself
tar -cf /tmp/busybox.tar .
docker import /tmp/busybox.tar busybox
podman import -q /tmp/busybox.tar localhost/busybox
useradd -m -G kvm `+user+`
loginctl enable-linger `+user)
	eventually(t, "the user's systemd runs", func() error {
		_, err := os.Stat(userRun + "/systemd/private")
		return err
	})
	run(t, "sh", "-ec", "cp -r --preserve=mode . /home/"+user+"/boxlite && chmod 644 /tmp/busybox.tar")
	asUser(t, "./boxlite/boxlite install --podman --default && podman import -q /tmp/busybox.tar localhost/busybox")
}

func testMachine(t *testing.T) {
	want(t, run(t, "docker", "info", "-f", "{{.CgroupVersion}} {{.CgroupDriver}} {{.DefaultRuntime}} {{.LiveRestoreEnabled}}"), `^2 systemd boxlite true$`)
	want(t, run(t, "./boxlite", "check"), `(?m)^acceleration +ok +kvm \(usable\), nested`, `(?m)^cgroups +ok +version 2`)
	want(t, run(t, "cat", "/proc/1/comm"), `^systemd$`)
}

func testRun(t *testing.T) {
	wantGuest(t, run(t, "docker", "run", "--rm", "busybox", "uname", "-r"))
	out, err := command(t, "docker", "run", "--rm", "busybox", "sh", "-c", "echo out; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || out != "out" {
		t.Errorf("docker run: %q, %v, want out and 7", out, err)
	}
}

// scopeOf is a container's on the host: what Docker has called it, its directory.
func scopeOf(t *testing.T, name string) (unit, dir string) {
	t.Helper()
	unit = "docker-" + run(t, "docker", "inspect", "-f", "{{.Id}}", name) + ".scope"
	return unit, filepath.Join("/sys/fs/cgroup/system.slice", unit)
}

// In the guest a limit is what was asked for. On the host the VM has its own needs beside the container's.
func testLimits(t *testing.T) {
	const mib = 1 << 20
	run(t, "docker", "run", "-d", "--name", "limits", "--memory", "256m", "--cpus", "0.5", "--pids-limit", "50", "busybox", "sleep", "infinity")
	unit, dir := scopeOf(t, "limits")
	ofScope := func(name string) string { return run(t, "cat", filepath.Join(dir, name)) }
	ofGuest := func(name string) string { return run(t, "docker", "exec", "limits", "cat", "/sys/fs/cgroup/"+name) }
	wantEqual(t, "memory.max in the guest", ofGuest("memory.max"), strconv.Itoa(256*mib))
	wantEqual(t, "pids.max in the guest", ofGuest("pids.max"), "50")
	wantEqual(t, "cpu.max in the guest", ofGuest("cpu.max"), "50000 100000")
	wantEqual(t, "cpu.max of the scope", ofScope("cpu.max"), "50000 100000")
	memory := number(t, ofScope("memory.max"))
	if overhead := memory - 256*mib; overhead <= 0 || overhead > 1024*mib {
		t.Errorf("memory.max of the scope is %d bytes beyond the container's limit, want up to a GiB", overhead)
	}
	if pids := number(t, ofScope("pids.max")); pids <= 50 {
		t.Errorf("pids.max of the scope is %d, want the container's 50 and the VM's threads", pids)
	}
	want(t, run(t, "systemctl", "show", unit, "-p", "MemoryMax,CPUQuotaPerSecUSec,ActiveState"),
		`(?m)^MemoryMax=`+strconv.Itoa(memory)+`$`, `(?m)^CPUQuotaPerSecUSec=500ms$`, `(?m)^ActiveState=active$`)
	// Docker reads the scope's own figures.
	want(t, run(t, "docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", "limits"), fmt.Sprintf(`^[0-9.]+MiB / %dMiB$`, memory/mib))

	run(t, "docker", "update", "--memory", "128m", "--memory-swap", "128m", "--cpus", "0.8", "--pids-limit", "60", "limits")
	wantEqual(t, "memory.max in the guest, updated", ofGuest("memory.max"), strconv.Itoa(128*mib))
	wantEqual(t, "pids.max in the guest, updated", ofGuest("pids.max"), "60")
	wantEqual(t, "cpu.max in the guest, updated", ofGuest("cpu.max"), "80000 100000")
	wantEqual(t, "memory.max of the scope, updated", ofScope("memory.max"), strconv.Itoa(memory)) // the VM keeps its memory
	wantEqual(t, "cpu.max of the scope, updated", ofScope("cpu.max"), "80000 100000")

	run(t, "docker", "pause", "limits")
	wantEqual(t, "status", run(t, "docker", "inspect", "-f", "{{.State.Status}}", "limits"), "paused")
	run(t, "docker", "unpause", "limits")
	wantEqual(t, "after unpause", run(t, "docker", "exec", "limits", "echo", "again"), "again")

	run(t, "docker", "rm", "-f", "limits")
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scope's cgroup of a removed container: %v, want it gone", err)
	}
}

func testOutOfMemory(t *testing.T) {
	out, err := command(t, "docker", "run", "--name", "oom", "--memory", "64m", "--memory-swap", "64m", "busybox", "sh", "-c", "tail -c 200m /dev/zero")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 137 {
		t.Errorf("a container that takes more than its memory: %q, %v, want 137", out, err)
	}
	wantEqual(t, "its state", run(t, "docker", "inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "oom"), "true 137")
	run(t, "docker", "rm", "oom")
}

func testLiveRestore(t *testing.T) {
	run(t, "docker", "run", "-d", "--name", "live", "busybox", "sh", "-c", "echo before; sleep infinity")
	pid := run(t, "docker", "inspect", "-f", "{{.State.Pid}}", "live")
	run(t, "systemctl", "restart", "docker")
	wantEqual(t, "after a restart of dockerd", run(t, "docker", "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "live"), "running "+pid)
	wantGuest(t, run(t, "docker", "exec", "live", "uname", "-r"))
	wantEqual(t, "its log", run(t, "docker", "logs", "live"), "before")
	run(t, "docker", "stop", "-t", "1", "live")
	run(t, "docker", "start", "live")
	wantGuest(t, run(t, "docker", "exec", "live", "uname", "-r"))
	run(t, "docker", "rm", "-f", "live")
}

// quadlet is a unit of Podman's. It is the same for root and a user. It is started again if it fails, as Docker does by its policy:
// when all of the machine's containers start at once, emulated SVM now and then ends one of the VMs.
const quadlet = `[Container]
ContainerName=quadlet
Image=localhost/busybox
Annotation=boxlite.vcpus=1
Exec=sleep infinity
Notify=false

[Service]
TimeoutStartSec=240
Restart=on-failure

[Install]
WantedBy=default.target
`

func testQuadlet(t *testing.T) {
	writeFile(t, "/etc/containers/systemd/quadlet.container", quadlet)
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "quadlet")
	wantGuest(t, run(t, "podman", "exec", "quadlet", "uname", "-r"))
	// By its unit's own cgroup systemd knows what belongs to the unit.
	path := run(t, "podman", "inspect", "-f", "{{.State.CgroupPath}}", "quadlet")
	want(t, path, `^/system\.slice/quadlet\.service/`)
	want(t, run(t, "cat", "/sys/fs/cgroup"+path+"/cgroup.procs"), `\d`)
	run(t, "systemctl", "restart", "quadlet")
	wantGuest(t, run(t, "podman", "exec", "quadlet", "uname", "-r"))
}

func testUserQuadlet(t *testing.T) {
	asUser(t, "mkdir -p ~/.config/containers/systemd && cat >~/.config/containers/systemd/quadlet.container <<'END'\n"+quadlet+"END\n")
	asUser(t, "systemctl --user daemon-reload && systemctl --user start quadlet")
	wantGuest(t, asUser(t, "podman exec quadlet uname -r"))
	want(t, asUser(t, "podman info -f '{{.Host.CgroupManager}} {{.Host.OCIRuntime.Name}} {{.Host.Security.Rootless}}'"), `^systemd boxlite true$`)
	out := asUser(t, "podman run --rm --annotation boxlite.vcpus=1 --memory 100m --pids-limit 40 localhost/busybox cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max")
	wantEqual(t, "limits of a user's container", out, "104857600\n40")
}

// The way before quadlets: a container's own unit, by podman generate systemd.
func testGeneratedUnit(t *testing.T) {
	run(t, "podman", "create", "--name", "generated", "--annotation", "boxlite.vcpus=1", "localhost/busybox", "sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait")
	run(t, "sh", "-ec", "cd /etc/systemd/system && podman generate systemd --new --files --name generated 2>/dev/null && podman rm generated && systemctl daemon-reload && systemctl start container-generated")
	wantGuest(t, run(t, "podman", "exec", "generated", "uname", "-r"))
	run(t, "systemctl", "stop", "container-generated")
	wantEqual(t, "the unit, stopped", run(t, "sh", "-c", "systemctl is-active container-generated; true"), "inactive")
}

// inside skips a test outside the machine that it would change.
func inside(t *testing.T) {
	t.Helper()
	if os.Getenv("INSIDE") == "" {
		t.Skip("a part of TestSystemd, in its machine")
	}
}

// command runs a program and returns its stdout without the last line's end. The error of one that failed holds its stderr.
func command(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	var stderr strings.Builder
	c := exec.CommandContext(ctx, name, args...)
	c.Stderr = &stderr
	begin := time.Now()
	out, err := c.Output()
	t.Logf("%5.1f s: %s %s", time.Since(begin).Seconds(), name, strings.Join(args, " "))
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return strings.TrimSuffix(string(out), "\n"), err
}

// run is command for one that must succeed. Emulated SVM now and then ends a VM (QEMU 7.2: one of some fifteen); a container whose VM has
// ended as it started gets a second one. A boxlite that loses VMs loses that too.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...)
	if err != nil && strings.Contains(err.Error(), "the virtual machine has ended") {
		t.Logf("once more: %v", err)
		if i := slices.Index(args, "--name"); i >= 0 {
			_, _ = command(t, name, "rm", "-f", args[i+1]) // Docker keeps what did not start
		}
		out, err = command(t, name, args...)
	}
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return out
}

// asUser is run for a shell script of the user's, as in a session of theirs.
func asUser(t *testing.T, script string) string {
	t.Helper()
	return run(t, "runuser", "-u", user, "--", "env", "-C", "/home/"+user, "XDG_RUNTIME_DIR="+userRun, "DBUS_SESSION_BUS_ADDRESS=unix:path="+userRun+"/bus", "sh", "-ec", script)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check has no error.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(commandLimit); ; time.Sleep(time.Second) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, commandLimit, err)
		}
	}
}

func equal(got, want string) error {
	if got != want {
		return fmt.Errorf("%q, want %q", got, want)
	}
	return nil
}

func wantEqual(t *testing.T, what, got, want string) {
	t.Helper()
	if err := equal(got, want); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func want(t *testing.T, got string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(got) {
			t.Errorf("got %q, want a match for %s", got, p)
		}
	}
}

// wantGuest is about the name of the kernel that a container sees.
func wantGuest(t *testing.T, release string) {
	t.Helper()
	want(t, release, `^\S+-boxlite-(lean|net)$`)
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Error(err)
	}
	return n
}
