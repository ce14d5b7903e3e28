package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The ordinary user of the rootless cases. Further ids are the range that /etc/subuid gives it.
const (
	userID      = 2000
	userRunDir  = "/run/user/2000"
	userBinDir  = "/run/e2e-bin" // the runtime under test, where the user can reach it
	userAccount = `user:x:2000:2000::/:/bin/sh`
	subordinate = "user:200000:65536\ncontainers:1000000:1000000\n"
)

// A podman is Debian's podman with storage, networks and configuration of its own: root's, or the ordinary user's.
type podman struct {
	rootless bool
	dir      string // on disk: storage, configuration
	runtime  string // --runtime
}

func (p *podman) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "podman", append([]string{"--runtime", p.runtime}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CONTAINERS_CONF=" + p.dir + "/containers.conf", "CONTAINERS_STORAGE_CONF=" + p.dir + "/storage.conf",
		"HOME=" + p.dir,
		"PODMAN_IGNORE_CGROUPSV1_WARNING=1", // else Podman 5 warns on stderr
	}
	if p.rootless {
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+userRunDir, "USER=user")
		asUser(cmd)
	}
	return cmd
}

// asUser has the command run as the ordinary user.
func asUser(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: userID}}
}

// runFlags: a user has no cgroups here, as no systemd delegates any.
func (p *podman) runFlags(ociRuntime) []string {
	if p.rootless {
		return nil
	}
	return []string{"--cgroup-parent", "/" + tag}
}

// configure writes podman's configuration. The lists at the end are what docs/engines.md tells users to add.
func (p *podman) configure() error {
	var conf strings.Builder
	conf.WriteString(`
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
infra_image = "localhost/pause"
init_path = "/usr/bin/catatonit"
runtime = "runc"
runtime_supports_json = ["runc", "crun", "boxlite"]
runtime_supports_nocgroup = ["crun", "boxlite"]
[network]
network_backend = "netavark"
network_config_dir = "` + p.dir + `/networks"
[engine.runtimes]
`)
	for _, rt := range runtimes {
		bin := rt.bin
		if rt.isVM() {
			bin = filepath.Join(userBinDir, filepath.Base(bin))
		}
		fmt.Fprintf(&conf, "%s = [%q]\n", rt.name, bin)
	}
	runRoot := "/run/containers/storage"
	if p.rootless {
		runRoot = userRunDir + "/containers"
	}
	storage := fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", p.dir+"/storage", runRoot)
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return err
	}
	if p.rootless {
		if err := os.Chown(p.dir, userID, userID); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p.dir+"/containers.conf", []byte(conf.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.dir+"/storage.conf", []byte(storage), 0o644)
}

// prepare makes the image, and one container of each kind of network, whose first makes directories that stay.
func (p *podman) prepare() error {
	if err := p.configure(); err != nil {
		return err
	}
	p.runtime = "runc"
	layer, err := exec.Command("tar", "-C", filepath.Join(workDir, "rootfs"), "-c", ".").Output()
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"import", "--change", `CMD ["sh"]`, "-", "localhost/busybox"},
		{"import", "--change", `CMD ["sleep", "1000000"]`, "--change", "STOPSIGNAL SIGKILL", "-", "localhost/pause"},
		{"network", "create", "first"},
		append(append([]string{"run", "--rm", "--network", "first", "-p", "127.0.0.1:18079:80"}, p.runFlags(ociRuntime{})...), "busybox", "true"),
		append(append([]string{"run", "--rm"}, p.runFlags(ociRuntime{})...), "busybox", "true"),
		{"network", "rm", "first"},
	} {
		if r := try(p, strings.NewReader(string(layer)), args...); r.code != 0 {
			return fmt.Errorf("%s", r)
		}
	}
	return nil
}

// outAddress is the host's on the link that leads out.
const outAddress = "10.198.0.2"

// makeUser gives this run's host an ordinary user, who may use the devices that everybody may use on a Debian host, and a way
// out for that user's networks.
func makeUser() error {
	// The state root may stay, as root's may.
	if err := sh("mkdir -p /run/e2e-etc " + userRunDir + "/boxlite && chown -R 2000:2000 " + userRunDir + " && chmod 700 " + userRunDir); err != nil {
		return err
	}
	for name, line := range map[string]string{"passwd": userAccount + "\n", "group": "user:x:2000:\n", "subuid": subordinate, "subgid": subordinate} {
		text, err := os.ReadFile("/etc/" + name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(name, "sub") {
			text = nil // ranges of the machine's users may overlap
		}
		file := "/run/e2e-etc/" + name
		if err := os.WriteFile(file, append(text, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /etc/%s: %w", name, err)
		}
	}
	for path, minor := range map[string]uint32{"/dev/net/tun": 200, "/dev/fuse": 229} {
		node := "/run/e2e-etc/" + filepath.Base(path)
		if err := unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, minor))); err != nil {
			return fmt.Errorf("mknod %s: %w", node, err)
		}
		if err := os.Chmod(node, 0o666); err != nil {
			return err
		}
		if err := unix.Mount(node, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
	}
	// pasta takes the addresses of the link that leads out, and pings as its user, which systemd allows everybody.
	if err := sh("ip netns add beyond && ip link add out type veth peer name out netns beyond && ip addr add " + outAddress + "/24 dev out && ip link set out up && " +
		"ip -n beyond addr add 10.198.0.1/24 dev out && ip -n beyond link set out up && ip route add default via 10.198.0.1 && " +
		"echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"); err != nil {
		return err
	}
	for _, rt := range runtimes {
		if rt.isVM() {
			if err := sh(fmt.Sprintf("mkdir %s && mount --bind %s %s", userBinDir, filepath.Dir(rt.bin), userBinDir)); err != nil {
				return err
			}
		}
	}
	return os.Chmod(workDir, 0o711)
}

// Both podmans are made by the first case that needs one.
var preparePodmans = sync.OnceValues(func() ([]*podman, error) {
	if err := makeUser(); err != nil {
		return nil, err
	}
	all := []*podman{{dir: filepath.Join(workDir, "podman")}, {dir: filepath.Join(workDir, "podman-rootless"), rootless: true}}
	for _, p := range all {
		if err := p.prepare(); err != nil {
			return nil, fmt.Errorf("prepare podman: %w", err)
		}
	}
	return all, nil
})

// A podmanEnv is a case on one runtime through one of the podmans.
type podmanEnv struct {
	*env
	*podman
}

// eachPodman runs the case on each selected runtime, by root and by the ordinary user.
func eachPodman(t *testing.T, f func(e *podmanEnv)) {
	for _, name := range []string{"root", "user"} {
		t.Run(name, func(t *testing.T) {
			for _, rt := range runtimes {
				t.Run(rt.name, func(t *testing.T) { runPodman(t, rt, name == "user", f) })
			}
		})
	}
}

func runPodman(t *testing.T, rt ociRuntime, rootless bool, f func(e *podmanEnv)) {
	all, err := preparePodmans()
	if err != nil {
		t.Fatal(err)
	}
	p := *all[slices.IndexFunc(all, func(p *podman) bool { return p.rootless == rootless })]
	p.runtime = rt.name
	e := &podmanEnv{env: &env{T: t, rt: rt, eng: &p}, podman: &p}
	before := takeSnapshot()
	t.Cleanup(func() {
		e.removeAll()
		if left := before.leftovers(); left != nil {
			t.Errorf("left over:\n%s", strings.Join(left, "\n"))
		}
	})
	f(e)
}

// removeAll removes what a case may have made; the image busybox stays.
func (e *podmanEnv) removeAll() {
	for _, args := range [][]string{
		{"pod", "rm", "--force", "--all", "--time", "0"},
		{"rm", "--force", "--all", "--volumes", "--time", "0"},
		{"volume", "rm", "--force", "--all"},
		{"secret", "rm", "--all"},
		{"network", "prune", "--force"},
	} {
		if r := e.docker(args...); r.code != 0 {
			e.Errorf("%s", r)
		}
	}
}

// hostDir is a directory on disk that the user of podman owns.
func (e *podmanEnv) hostDir() string {
	e.Helper()
	dir := e.diskDir()
	if e.rootless {
		e.noErr(os.Chown(dir, userID, userID))
	}
	return dir
}
