package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// An ordinary user with the runtime's command line and the config.json that spec --rootless writes. (Root of a user
// namespace is what podman's cases of the ordinary user are.)
func TestRootlessByHand(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) {
			runPodman(t, rt, true, func(e *podmanEnv) {
				(&rootless{podmanEnv: e, dir: filepath.Join(e.hostDir(), "bundle")}).life()
			})
		})
	}
}

// rootless drives a runtime as the ordinary user.
type rootless struct {
	*podmanEnv
	dir string // bundle
}

// bin is the runtime where the user can reach it.
func (u *rootless) bin() string {
	if u.rt.isVM() {
		return filepath.Join(userBinDir, filepath.Base(u.rt.bin))
	}
	return u.rt.bin
}

func (u *rootless) cmdline(ctx context.Context, args ...string) *exec.Cmd {
	return u.command(ctx, append([]string{u.bin()}, args...)...)
}

func (u *rootless) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = u.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + userRunDir}
	asUser(cmd)
	return cmd
}

func (u *rootless) cmd(args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return finish(ctx, u.cmdline(ctx, args...))
}

func (u *rootless) must(args ...string) string {
	u.Helper()
	r := u.cmd(args...)
	if r.code != 0 {
		u.Fatalf("%s", r)
	}
	return r.stdout
}

// bundle makes one whose process is sh -c script, with the spec that the runtime writes changed by edit.
func (u *rootless) bundle(script string, edit func(*specs.Spec)) {
	u.Helper()
	u.noErr(sh(fmt.Sprintf("mkdir %[1]s && cp -a %[2]s/rootfs %[1]s/rootfs && chown -R %[3]d:%[3]d %[1]s", u.dir, workDir, userID)))
	u.must("spec", "--rootless")
	file := filepath.Join(u.dir, "config.json")
	var spec specs.Spec
	u.noErr(json.Unmarshal([]byte(u.readFile(file)), &spec))
	spec.Process.Terminal, spec.Root.Readonly = false, false
	spec.Process.Args = []string{"/bin/sh", "-c", script}
	edit(&spec)
	text, err := json.Marshal(spec)
	u.noErr(err)
	u.noErr(os.WriteFile(file, text, 0o644))
}

func (u *rootless) life() {
	u.bundle(`echo "id $(id -u)"; touch /root/mine; stat -c %u /root/mine /etc
		trap "echo got term; exit 6" TERM; echo up; while :; do sleep 0.1; done`, func(*specs.Spec) {})
	if u.rt.isVM() {
		u.wantPart("check", u.must("check"), "uid "+itoa(userID))
	}
	id := tag + "-rootless"
	u.Cleanup(func() {
		if r := u.cmd("delete", "--force", id); r.code != 0 {
			u.Errorf("%s", r)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	run := startSession(u.T, u.cmdline(ctx, "run", id), cancel)
	run.expect("id 0\n0\n0\nup\n")
	st, err := os.Stat(filepath.Join(u.dir, "rootfs/root/mine"))
	u.noErr(err)
	u.want("owner on the host", itoa(int(st.Sys().(*syscall.Stat_t).Uid)), itoa(userID))
	u.want("list", u.must("list", "-q"), id+"\n")
	u.wantPart("state", u.must("state", id), `"status": "running"`)
	r := u.cmd("exec", "--env", "A=b", id, "/bin/sh", "-c", "id -u; echo $A; exit 3")
	u.wantCode(r, 3)
	u.want("stdout of exec", r.stdout, "0\nb\n")
	u.must("exec", "--detach", id, "/bin/touch", "/root/detached")
	u.noErr(waitFor("the detached exec", func() bool {
		_, err := os.Stat(filepath.Join(u.dir, "rootfs/root/detached"))
		return err == nil
	}))
	u.must("kill", id, "TERM")
	run.expect("got term")
	u.want("exit code", itoa(run.end()), "6")
	u.want("list afterwards", u.must("list", "-q"), "")
}

// pasta gives a namespace an interface like the host's, and forwards ports to it.
func TestPasta(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) {
			runPodman(t, rt, true, func(e *podmanEnv) {
				u := &rootless{podmanEnv: e, dir: filepath.Join(e.hostDir(), "bundle")}
				u.bundle("mkdir /www; echo page >/www/index.html; httpd -p 8000 -h /www; ip -o -4 addr show dev out; echo serving; read x", func(s *specs.Spec) {
					s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil // pasta has made the user namespace
					s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
					s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"})
				})
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				run := startSession(u.T, u.command(ctx, "pasta", "--config-net", "-t", "18090:8000", "--", "unshare", "--mount", "sh", "-c",
					"mount -t proc proc /proc && exec "+u.bin()+" run "+tag+"-pasta"), cancel)
				u.wantPart("address", run.expect("serving"), " "+outAddress+"/24 ")
				for _, ip := range []string{outAddress, "127.0.0.1"} { // it connects to the address, and to the loopback
					u.want("forwarded port", e.fetch(ip+":18090"), "page\n")
				}
				run.send("\n")
				run.end()
			})
		})
	}
}
