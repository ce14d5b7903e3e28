package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Each mistake gives one clear error from create, and leaves nothing: the check at the case's end sees to that, and
// delete --force works, as the bundle's cleanup shows.
func TestBadBundles(t *testing.T) {
	hook := func(path string) *specs.Hooks {
		//lint:ignore SA1019 Docker's hook for the network is a prestart hook
		return &specs.Hooks{Prestart: []specs.Hook{{Path: path}}}
	}
	for name, c := range map[string]struct {
		edit   func(*specs.Spec)
		script string // run in the bundle
		want   string
		vmOnly bool // runc lets it pass
	}{
		"config-missing":    {nil, "rm config.json", `config\.json`, false},
		"config-malformed":  {nil, `printf '{"process": [}' >config.json`, `(?i)invalid character`, false},
		"config-wrong-type": {nil, `echo '{"ociVersion": "1.0.2", "process": 7}' >config.json`, `(?i)cannot unmarshal`, false},
		"config-empty":      {nil, `>config.json`, `(?i)EOF|empty|unexpected end`, false},
		"version":           {func(s *specs.Spec) { s.Version = "not-a-version" }, "", `(?i)version`, true},
		"version-2":         {func(s *specs.Spec) { s.Version = "2.0.0" }, "", `(?i)version`, true},
		"rootfs-missing":    {nil, "rm -r rootfs", `rootfs`, false},
		"rootfs-is-file":    {nil, "rm -r rootfs; touch rootfs", `rootfs`, true},
		"root-absent":       {func(s *specs.Spec) { s.Root = nil }, "", `(?i)root`, false},
		"args-empty":        {func(s *specs.Spec) { s.Process.Args = nil }, "", `(?i)args`, false},
		"cwd-relative":      {func(s *specs.Spec) { s.Process.Cwd = "relative" }, "", `(?i)cwd`, false},
		"mount-source":      {addMount("/there", "bind", "/no/such/source", "bind"), "", `/no/such/source`, false},
		"mount-type":        {addMount("/there", "nosuchfs", "none"), "", `nosuchfs|no such device`, false},
		"overlay-missing":   {addMount("/there", "overlay", "overlay", "lowerdir=/no/such/layer:/proc"), "", `/there.*/no/such/layer.*no such file`, false},
		"overlay-relative":  {addMount("/there", "overlay", "overlay", "lowerdir=/bin:bin"), "", `mount /there: .*want absolute`, true},
		"mount-over-file":   {addMount("/etc/passwd", "bind", "/proc", "bind"), "", `/etc/passwd`, false},
		"cgroup":            {func(s *specs.Spec) { s.Linux.CgroupsPath += "\nx" }, "", `(?i)cgroup|invalid argument`, false},
		"namespace-path":    {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/no/such/ns" }, "", `/no/such/ns`, false},
		"namespace-type":    {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/self/ns/uts" }, "", `(?i)namespace|setns|/proc/self/ns/uts`, true},
		"rlimit": {func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH", Hard: 1, Soft: 1}}
		}, "", `RLIMIT_NOSUCH`, false},
		"sysctl":         {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} }, "", `(?i)no.such`, false},
		"seccomp-action": {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_NOSUCH"} }, "", `(?i)seccomp|SCMP_ACT_NOSUCH`, false},
		"hook-missing":   {func(s *specs.Spec) { s.Hooks = hook("/no/such/hook") }, "", `/no/such/hook`, false},
		"hook-fails":     {func(s *specs.Spec) { s.Hooks = hook("/bin/false") }, "", `(?i)hook`, false},
		"device-type": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "z", Major: 1, Minor: 3}}
		}, "", `(?i)device`, false},
	} {
		t.Run(name, func(t *testing.T) {
			each := eachRuntime
			if c.vmOnly {
				each = eachVM
			}
			each(t, func(e *env) {
				h := e.byHand()
				b := h.bundle("bad-"+name, "echo must not run", c.edit)
				if c.script != "" {
					h.shOut("cd " + b.dir + "; " + c.script)
				}
				h.wantFail(c.want, "create", "--bundle", b.dir, "--pid-file", b.pidFile(), b.id)
				h.wantFail("container does not exist", "state", b.id)
				if _, err := os.Stat(b.pidFile()); err == nil {
					h.Errorf("a failing create leaves a pid file")
				}
			})
		})
	}
}

func addMount(destination, fstype, source string, options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: destination, Type: fstype, Source: source, Options: options})
	}
}

func TestBadArguments(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		for _, args := range [][]string{
			{"state", "nosuch"},
			{"start", "nosuch"},
			{"kill", "nosuch", "TERM"},
			{"kill", "--all", "nosuch", "TERM"},
			{"delete", "nosuch"},
			{"ps", "nosuch"},
		} {
			h.wantFail("container does not exist", args...)
		}
		r := h.cmd("exec", "nosuch", "true")
		h.wantCode(r, 255)
		h.wantPart("stderr of exec", r.stderr, "container does not exist")

		b := h.bundle("args", "sleep 1000", nil)
		for _, id := range []string{"a/b", "..", "", "../" + b.id, "a b"} {
			r := h.cmd("create", "--bundle", b.dir, id)
			if r.code == 0 || r.stderr == "" {
				h.Errorf("create of id %q: %s", id, r)
			}
			for _, command := range []string{"state", "start", "delete"} {
				if r := h.cmd(command, id); r.code == 0 {
					h.Errorf("%s of id %q: %s", command, id, r)
				}
			}
		}
		h.wantFail("/no/such/bundle", "create", "--bundle", "/no/such/bundle", b.id)
		if r := h.cmd("create", "--bundle", b.dir); r.code == 0 {
			h.Errorf("create without id: %s", r)
		}
		if r := h.cmd("create", "--no-such-flag", "--bundle", b.dir, b.id); r.code == 0 {
			h.Errorf("create with an unknown flag: %s", r)
		}
		h.create(b)
		h.wantFail("container with given ID already exists", "create", "--bundle", b.dir, b.id)
		h.wantStatus(b.id, specs.StateCreated)
		h.wantFail("(?i)signal", "kill", b.id, "NOSUCH")
		h.wantFail("(?i)signal", "kill", b.id, "99999")
	})
}

// Nothing can be made any more where the bundle is, and a mount point is missing.
func TestBundleOnAFullDisk(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("full", "echo must not run", addMount("/not/there", "tmpfs", "none"))
		h.shOut(fmt.Sprintf(`
n=$(find %[1]s | wc -l); mkdir %[1]s-disk
mount -n -t tmpfs -o size=32m,nr_inodes=$((n + 1)) none %[1]s-disk
cp -a %[1]s/. %[1]s-disk; ! touch %[1]s-disk/fill1 %[1]s-disk/fill2 2>/dev/null`, b.dir))
		h.Cleanup(func() { h.shOut("umount -n " + b.dir + "-disk; rmdir " + b.dir + "-disk") })
		h.wantFail("(?i)no space left on device", "create", "--bundle", b.dir+"-disk", b.id)
	})
}

// The same mistakes as Docker shows them.
func TestBadInputThroughDocker(t *testing.T) {
	eachRuntime(t, func(e *env) {
		gone := filepath.Join(e.diskDir(), "gone")
		e.noErr(os.Mkdir(gone, 0o755))
		id := e.ok("create", "--runtime", e.rt.name, "--mount", "type=bind,src="+gone+",dst=/x", "busybox", "true")
		e.noErr(os.Remove(gone))
		r := e.docker("start", id)
		e.wantCode(r, 1)
		e.wantPart("start without the mount's source", r.stderr, gone)
		e.ok("rm", id)

		r = e.run("-v", "/etc/hostname:/etc", "busybox", "true")
		e.wantCode(r, 125)
		e.wantPart("file over a directory", r.stderr, "ot a directory")

		for _, dest := range []string{"/proc", "/proc/foo"} {
			r = e.run("-v", e.diskDir()+":"+dest, "busybox", "true")
			e.wantCode(r, 125)
			e.wantPart("volume in /proc", r.stderr, `cannot be mounted because it is `)
		}

		// Docker's hook for the network fails as well, for want of a process. Docker 29 refuses the name itself.
		want := "set the host name: "
		if e.d.major() >= 29 {
			want = "is too long"
		}
		r = e.run("--hostname", strings.Repeat("a", 65), "busybox", "true")
		e.wantCode(r, 125)
		e.wantPart("long host name", strings.ReplaceAll(r.stderr, "sethostname", "set the host name"), want)
	})
}
