package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A containerd drives the runtime by ctr, its own client, which asks for nothing of what dockerd does.
type containerd struct{ d *daemon }

// command is ctr with args, in a namespace of this run.
func (c containerd) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ctr", append([]string{"--address", filepath.Join(c.d.execRoot, "containerd/containerd.sock"), "--namespace", tag}, args...)...)
}

func (c containerd) runFlags(rt ociRuntime) []string {
	return []string{"--runc-binary", rt.bin, "--runc-root", "/run/ctr", "--cgroup", "/" + tag + "/ctr", "--rootfs", "--env", "PATH=/bin"}
}

// A container of containerd's own, without Docker: its life and what it prints.
func TestContainerd(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		rootfs := filepath.Join(dir, "rootfs")
		e.noErr(sh("cp -a " + filepath.Join(workDir, "rootfs") + " " + rootfs)) // containerd makes mount points in it
		e.eng = containerd{e.d}
		// What ctr and containerd make for a namespace's first container stays.
		e.Cleanup(func() {
			e.noErr(sh("rm -rf /run/ctr /run/containerd/fifo " + filepath.Join(e.d.execRoot, "containerd/daemon/io.containerd.runtime.v2.task", tag)))
		})
		run := func(args []string, command ...string) result {
			flags := append([]string{"run"}, append(e.eng.runFlags(e.rt), args...)...)
			return e.docker(append(append(flags, rootfs, tag+"-ctr"), command...)...)
		}
		r := run([]string{"--rm"}, "sh", "-c", "echo out; echo err >&2; exit 7")
		e.wantCode(r, 7)
		e.want("stdout", r.stdout, "out\n")
		e.wantPart("stderr", r.stderr, "err\n")
		r = run([]string{"--rm"}, "nothing-like-it")
		e.wantCode(r, 1)
		e.wantPart("stderr", r.stderr, `exec: "nothing-like-it": executable file not found in $PATH`)

		r = run([]string{"-d", "--memory-limit", "100000000", "--mount", "type=bind,src=" + dir + ",dst=/mnt,options=rbind:rw"}, "sleep", "1000")
		e.wantCode(r, 0)
		e.want("tasks", statusOf(e.ok("task", "ls")), "RUNNING")
		r = e.docker("task", "exec", "--exec-id", "one", tag+"-ctr", "sh", "-c", "echo hello >/mnt/file; cat /mnt/file; exit 3")
		e.wantCode(r, 3)
		e.want("stdout of exec", r.stdout, "hello\n")
		e.ok("task", "pause", tag+"-ctr")
		e.want("tasks", statusOf(e.ok("task", "ls")), "PAUSED")
		e.ok("task", "resume", tag+"-ctr")
		e.wantPart("metrics", e.ok("task", "metrics", tag+"-ctr"), "memory.usage_in_bytes")
		e.ok("task", "kill", "--signal", "SIGKILL", tag+"-ctr")
		if err := waitFor("the task has stopped", func() bool { return statusOf(e.ok("task", "ls")) == "STOPPED" }); err != nil {
			e.Error(err)
		}
		e.wantPart("end of the task", e.docker("task", "delete", tag+"-ctr").stderr, "exit code 137")
		e.ok("container", "delete", tag+"-ctr")
	})
}

// statusOf is that of the only task in ctr's list.
func statusOf(list string) string {
	fields := strings.Fields(list)
	return fields[len(fields)-1]
}

// A Kubernetes pod with one container: those who make pods start another first, which keeps the network namespace and
// whose id the member has in an annotation. It is that member's network from then on.
func TestPodByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		holder := h.inMadeNetwork("pod", "sleep 1000")
		h.create(holder).start()
		const ping = "ping -c 1 -W 20 192.0.2.1 && echo pinged"
		member := func(name, script string, annotations map[string]string) bundle {
			return h.bundle(name, script, func(s *specs.Spec) {
				s.Annotations = annotations
				joinNetwork(s)
			})
		}
		if e.rt.isVM() {
			stranger := member("stranger", ping, nil)
			h.wantFail("belongs to the VM of container "+holder.id+" already", "create", "--bundle", stranger.dir, stranger.id)
		}
		for name, annotation := range map[string]string{"crio": "io.kubernetes.cri-o.SandboxID", "containerd": "io.kubernetes.cri.sandbox-id"} {
			b := member("pod-"+name, ping, map[string]string{annotation: holder.id})
			c := h.create(b)
			c.start()
			h.wantPart("stdout of "+name+"'s", c.out.wait(), "pinged\n")
			c.end()
			h.must("delete", b.id)
		}
		h.must("delete", "--force", holder.id)
	})
}
