package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestRunByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("run", "cat; echo out; echo err >&2; hostname; exit 42", nil)
		r := h.cmdIn(strings.NewReader("in\n"), "run", "--bundle", b.dir, b.id)
		h.wantCode(r, 42)
		h.want("stdout", r.stdout, "in\nout\nby-hand\n")
		h.want("stderr", r.stderr, "err\n")
		h.wantCode(h.cmd("state", b.id), 1) // run deletes

		// Its signals are the container's.
		b = h.bundle("signal", "exec probe signals", nil)
		s := startSession(h.T, h.cmdline("run", "--bundle", b.dir, b.id), func() {})
		s.expect("ready\n")
		h.noErr(s.cmd.Process.Signal(os.Interrupt))
		s.expect("SIGINT\n")
		h.must("kill", b.id, "TERM")
		h.want("exit code", itoa(s.end()), "5")

		// Detached it goes on, and its pid file says as what.
		b = h.bundle("detached", "sleep 1000", nil)
		// Its container holds stdio, so a reaper runs it.
		d := startReaper(h.T, reaperJob{Args: h.argv("run", "--detach", "--pid-file", b.pidFile(), "--bundle", b.dir, b.id), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("run --detach", d.wait(0).String(), "exit code 0")
		h.wantStatus(b.id, specs.StateRunning)
		h.want("pid", itoa(h.state(b.id).Pid), itoa(h.readPid(b.pidFile())))
		h.must("delete", "--force", b.id)
	})
}

func TestLifecycleByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("life", "echo started; exec probe signals", func(s *specs.Spec) { s.Annotations = map[string]string{"a.b": "c"} })
		c := h.create(b)
		st := h.state(b.id)
		h.want("status", string(st.Status), "created")
		h.want("id", st.ID, b.id)
		h.want("pid", itoa(st.Pid), itoa(c.pid))
		h.want("bundle", st.Bundle, b.dir)
		h.want("rootfs", st.Rootfs, b.rootfs(""))
		h.want("annotation", st.Annotations["a.b"], "c")
		if made, err := time.Parse(time.RFC3339Nano, st.Created); err != nil || time.Since(made).Abs() > time.Hour {
			h.Errorf("created = %q, want now", st.Created)
		}

		h.wantFail("container with given ID already exists", "create", "--bundle", b.dir, b.id)
		// The bundle was read at create.
		h.noErr(os.Remove(filepath.Join(b.dir, "config.json")))
		c.start()
		h.wantStatus(b.id, specs.StateRunning)
		h.wantFail("cannot start an already running container", "start", b.id)
		h.wantFail("cannot delete container "+b.id+" that is not stopped", "delete", b.id)

		var list []state
		text := h.must("list", "--format", "json")
		h.noErr(json.Unmarshal([]byte(text), &list))
		h.want("lines of list --format json", itoa(strings.Count(text, "\n")), "1")
		if len(list) != 1 || list[0].ID != b.id || list[0].Status != specs.StateRunning {
			h.Errorf("list = %+v, want the running %s alone", list, b.id)
		}
		h.want("list -q", h.must("list", "-q"), b.id+"\n")
		var pids []int
		h.noErr(json.Unmarshal([]byte(h.must("ps", "--format", "json", b.id)), &pids))
		if len(pids) == 0 {
			h.Errorf("ps gives no pid")
		}
		for _, pid := range pids {
			if _, err := os.Stat("/proc/" + itoa(pid)); err != nil {
				h.Errorf("ps gives pid %d: %v", pid, err)
			}
		}

		h.expect(c.out, "ready\n")
		h.must("kill", b.id, "0")
		for _, name := range []string{"USR1", "SIGUSR2", "1", "sighup"} {
			h.must("kill", b.id, name)
		}
		h.must("kill", b.id) // TERM
		h.want("the stand-in's end", c.end().String(), "exit code 5")
		h.waitStatus(b.id, specs.StateStopped)
		h.want("pid when stopped", itoa(h.state(b.id).Pid), "0")
		out := c.out.wait()
		for _, want := range []string{"started\nready\n", "SIGUSR1\n", "SIGUSR2\n", "SIGHUP\n", "SIGTERM\n"} {
			h.wantPart("stdout", out, want)
		}
		h.wantFail("container not running", "kill", b.id, "TERM")
		h.must("kill", "--all", b.id, "KILL")
		h.wantFail("cannot start a container that has stopped", "start", b.id)
		h.wantCode(h.cmd("exec", b.id, "true"), 255)
		h.must("delete", b.id)
		h.wantFail("container does not exist", "state", b.id)
		h.wantFail("container does not exist", "delete", b.id)
		h.want("output of delete --force of what is gone", h.must("delete", "--force", b.id), "")
	})
}

// delete of a created container kills it; so does KILL.
func TestEndBeforeStart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("unborn", "echo must not run", nil)
		c := h.create(b)
		h.must("delete", b.id)
		c.end()
		h.want("stdout", c.out.wait(), "")

		b = h.bundle("killed", "echo must not run", nil)
		c = h.create(b)
		h.must("kill", b.id, "KILL")
		c.wantKilled()
		h.waitStatus(b.id, specs.StateStopped)
		h.want("stdout", c.out.wait(), "")
		h.must("delete", b.id)
	})
}

// What docker 28 and later do: the interface is plugged in between create and start.
func TestNetworkAppearsBetweenCreateAndStart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("late-net", `
ip addr show dev eth0; ip route; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
ping -c 1 -W 20 192.0.2.1 && ping -c 1 -W 20 203.0.113.9 && ping -6 -c 1 -W 20 2001:db8::1 && echo pinged`, nil)
		c := h.create(b)
		h.shOut(fmt.Sprintf(`
ip link add bxhost type veth peer name bxguest address 02:00:00:11:22:33 mtu 1300
ip link set bxhost mtu 1300 up
ip addr add 192.0.2.1/24 dev bxhost
ip addr add 203.0.113.9/32 dev bxhost
ip -6 addr add 2001:db8::1/64 dev bxhost nodad
ip link set bxguest netns %[1]d
nsenter -t %[1]d -n sh -ec '
ip link set bxguest name eth0
ip addr add 192.0.2.2/24 dev eth0
ip -6 addr add 2001:db8::2/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 192.0.2.1'`, c.pid))
		c.start()
		out := c.out.wait()
		for _, want := range []string{"192.0.2.2/24", "2001:db8::2/64", "default via 192.0.2.1", "02:00:00:11:22:33\n1300\n", "pinged\n"} {
			h.wantPart("stdout", out, want)
		}
		h.want("end", c.end().String(), "exit code 0")
		h.must("delete", b.id)
	})
}

// inMadeNetwork makes the network namespace bxns, with eth7 at one end of a cable whose other end is bxhost, until the
// test ends, and returns a bundle whose container joins it.
func (h *hand) inMadeNetwork(name, script string) bundle {
	h.namedNamespace("bxns")
	h.shOut(`ip link add bxhost type veth peer name eth7 netns bxns
ip addr add 192.0.2.1/24 dev bxhost; ip link set bxhost up
ip -n bxns addr add 192.0.2.3/24 dev eth7; ip -n bxns link set lo up; ip -n bxns link set eth7 up`)
	h.Cleanup(func() { h.shOut("ip link del bxhost 2>/dev/null || :") })
	return h.bundle(name, script, joinNetwork)
}

// namedNamespace makes a network namespace of that name (ip-netns(8)), until the test ends. If /run/netns is mounted before, by
// Podman, it stays so.
func (h *hand) namedNamespace(name string) {
	h.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/run/netns"))
	h.noErr(err)
	h.shOut("ip netns add " + name)
	h.Cleanup(func() {
		h.shOut("ip netns del " + name)
		if len(mounts) == 0 {
			h.shOut("umount /run/netns; rmdir /run/netns")
		}
	})
}

// joinNetwork gives a container the namespace that inMadeNetwork has made.
func joinNetwork(s *specs.Spec) {
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = "/run/netns/bxns"
		}
	}
}

// madeNetwork is what can be seen of bxns.
func (h *hand) madeNetwork() string {
	return h.shOut("ip -n bxns -o link show | awk '{print $2,$3}'; ip -n bxns -o addr show | awk '{print $2,$4}'; tc -n bxns qdisc show; tc -n bxns filter show dev eth7 ingress; ip -n bxns rule; ip -4 -n bxns route show table all")
}

// Who hears that a container does not run any more, hears it of its state too.
func TestStateAgreesWithKill(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		for i := range 3 {
			b := h.bundle("ends-"+itoa(i), "sleep .3", nil)
			c := h.create(b)
			c.start()
			h.noErr(waitFor("kill says that it has ended", func() bool { return h.cmd("kill", b.id, "0").code != 0 }))
			h.wantStatus(b.id, specs.StateStopped)
			c.end()
			h.must("delete", b.id)
		}
	})
}

// A network namespace made beforehand is joined, not replaced, and is as it was when the container is gone.
func TestNetworkNamespaceFromPath(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("path-net", "ip -4 -o addr show dev eth7; ping -c 1 -W 20 192.0.2.1 && echo pinged; echo forward $(cat /proc/sys/net/ipv4/ip_forward)")
		h.shOut("ip netns exec bxns sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'")
		before := h.madeNetwork()
		c := h.create(b)
		c.start()
		out := c.out.wait()
		h.wantPart("stdout", out, "192.0.2.3/24")
		h.wantPart("stdout", out, "pinged\n")
		h.wantPart("stdout", out, "forward 1\n")
		c.end()
		h.must("delete", b.id)
		if err := waitFor("the namespace is as before", func() bool { return h.madeNetwork() == before }); err != nil {
			h.Errorf("%v: %s, before: %s", err, h.madeNetwork(), before)
		}
	})
}

// A container that cannot be made has been in the namespace too.
func TestFailedCreateLeavesTheNetworkAsItWas(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("failed-net", "true")
		h.noErr(os.Remove(b.rootfs("bin/sh")))
		before := h.madeNetwork()
		h.wantFail("sh", "create", "--bundle", b.dir, b.id)
		h.want("the namespace", h.madeNetwork(), before)
	})
}

// Interfaces that were there at create keep up with what happens to them until start, and others may come.
func TestNetworkChangesBetweenCreateAndStart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("changing-net", "ip -4 -o addr show; ping -c 1 -W 20 192.0.2.1 && ping -c 1 -W 20 198.51.100.1 && echo pinged")
		c := h.create(b)
		h.shOut(`ip -n bxns addr del 192.0.2.3/24 dev eth7; ip -n bxns addr add 192.0.2.4/24 dev eth7
ip link add bxmore type veth peer name eth8 netns bxns
ip addr add 198.51.100.1/24 dev bxmore; ip link set bxmore up
ip -n bxns addr add 198.51.100.3/24 dev eth8; ip -n bxns link set eth8 up`)
		c.start()
		out := c.out.wait()
		for _, want := range []string{"192.0.2.4/24", "198.51.100.3/24", "pinged\n"} {
			h.wantPart("stdout", out, want)
		}
		if strings.Contains(out, "192.0.2.3") {
			h.Errorf("stdout = %q, with an address that the namespace has lost", out)
		}
		c.end()
		h.must("delete", b.id)
	})
}

func TestExecByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("exec", "sleep 1000", nil)
		c := h.create(b)
		// exec in a created container is allowed.
		h.want("exec before start", h.must("exec", b.id, "echo", "early"), "early\n")
		c.start()
		r := h.cmdIn(strings.NewReader("in"), "exec", "--env", "A=1", "--cwd", "/etc", "--user", "5:6", "--additional-gids", "9", b.id,
			"sh", "-c", `cat; echo " $A $(pwd) $(id -u) $(id -g) $(id -G)"; echo err >&2; exit 9`)
		h.wantCode(r, 9)
		h.want("stdout", r.stdout, "in 1 /etc 5 6 6 9\n")
		h.want("stderr", r.stderr, "err\n")

		for _, path := range []string{"..", "../beside", "a/../../b"} {
			r := h.cmd("exec", "--cgroup", path, b.id, "true")
			h.wantCode(r, 255)
			h.wantPart("stderr", r.stderr, path+" is not a sub cgroup path")
		}
		h.must("exec", "--cgroup", "/", b.id, "true")

		process := filepath.Join(b.dir, "process.json")
		text, err := json.Marshal(specs.Process{Args: []string{"sh", "-c", "echo $FROM; exit 3"}, Env: []string{"PATH=/bin", "FROM=file"}, Cwd: "/"})
		h.noErr(err)
		h.noErr(os.WriteFile(process, text, 0o644))
		r = h.cmd("exec", "--process", process, b.id)
		h.wantCode(r, 3)
		h.want("stdout", r.stdout, "file\n")

		// What is typed once it has ended is for whoever reads the terminal then.
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		caller := exec.CommandContext(ctx, "sh", append([]string{"-c", `"$@"; echo over; read line; echo got $line`, "sh"}, h.argv("exec", "-t", b.id, "true")...)...)
		caller.Env = h.vars
		s := startOnTerminal(h.T, caller, cancel)
		s.expect("over\r\n")
		s.send("typed\r")
		s.expect("got typed\r\n")
		h.want("exit code of the caller", itoa(s.end()), "0")

		// Detached: the command returns, its pid file names the process that ends as the one in the container.
		out, pidFile := h.collect(), filepath.Join(b.dir, "exec-pid")
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--process", process, "--detach", "--pid-file", pidFile, b.id), Env: h.vars, Dir: "/"}, [3]*os.File{nil, out.w, nil})
		h.noErr(out.w.Close())
		h.want("exec --detach", x.wait(0).String(), "exit code 0")
		h.want("the exec process", x.wait(h.readPid(pidFile)).String(), "exit code 3")
		h.want("its stdout", out.wait(), "file\n")

		// A signal to its pid is one to the process.
		out = h.collect()
		x = startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", pidFile, b.id, "probe", "signals"), Env: h.vars, Dir: "/"}, [3]*os.File{nil, out.w, nil})
		h.noErr(out.w.Close())
		x.wait(0)
		pid := h.readPid(pidFile)
		h.expect(out, "ready\n")
		h.noErr(syscall.Kill(pid, syscall.SIGTERM))
		h.want("the exec process after TERM", x.wait(pid).String(), "exit code 5")
		h.want("its stdout", out.wait(), "ready\nSIGTERM\n")
	})
}

// Every capability there is reaches the process, and a name that nobody knows costs none of the others.
func TestAllCapabilities(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		var features struct {
			Linux struct {
				Capabilities []string `json:"capabilities"`
			} `json:"linux"`
		}
		h.noErr(json.Unmarshal([]byte(h.must("features")), &features))
		all := features.Linux.Capabilities
		h.want("number of capabilities", itoa(len(all)), "41")
		b := h.bundle("caps", "grep CapEff /proc/self/status | cut -f2", func(s *specs.Spec) {
			with := append([]string{"CAP_CAP_CHOWN"}, all...) // prefixed twice
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: with, Effective: with, Permitted: with}
		})
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 0)
		h.want("effective set", r.stdout, "000001ffffffffff\n")
		h.wantPart("warning", r.stderr, "CAP_CAP_CHOWN")
	})
}
