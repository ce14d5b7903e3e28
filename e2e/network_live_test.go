package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// liveLimit is how long a change of a running container's network may take to be seen inside. It is two seconds, and as much
// again for an exec on a busy machine that looks.
const liveLimit = 4 * time.Second

// becomes runs look until it gives want, and says how long that took.
func (e *env) becomes(what, want string, look func() string) {
	e.Helper()
	began := time.Now()
	for {
		got := look()
		took := time.Since(began)
		if got == want {
			e.Logf("%s after %s", what, took.Round(10*time.Millisecond))
			if took > liveLimit {
				e.Errorf("%s: only after %s", what, took)
			}
			return
		}
		if took > 4*liveLimit {
			e.Errorf("%s = %q after %s, want %q", what, clip(got), took, clip(want))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// shows is becomes for what a script prints in a container.
func (e *env) shows(id, want, script string) {
	e.Helper()
	e.becomes(script, want, func() string { return strings.TrimSpace(e.docker("exec", id, "sh", "-c", script).stdout) })
}

const (
	showLinks   = "ls /sys/class/net | grep -e eth | tr '\\n' ' '"
	showDefault = "ip route | awk '/^default/ {print $3,$5}'"
	showDevices = "ls /sys/bus/pci/devices 2>/dev/null | wc -l"
)

// namespaceOf is what there is of links and filters in a running container's network namespace.
func (e *env) namespaceOf(id string) string {
	e.Helper()
	return e.shOut("nsenter -n -t " + e.inspect(id, ".State.Pid") + ` sh -c 'ip -o link | sed "s/^[0-9]*: //; s/@.*//; s/:.*//" | sort
for i in $(ls /sys/class/net); do tc qdisc show dev $i ingress; tc filter show dev $i ingress | grep -c mirred; done; ip rule | wc -l'`)
}

// A running container gets the interface, addresses, routes and names of a network that it is connected to, and loses them.
func TestNetworkConnect(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.10.0/24", "base")
		e.ok("network", "create", "--subnet", "10.198.11.0/24", "--subnet", "fd98:11::/64", "--ipv6", "-o", "com.docker.network.driver.mtu=1400", "live")
		server := e.rt.name + "-server"
		e.startReady("listening", "--network", "live", "--name", server, "busybox", "probe", "serve", "tcp", ":7")
		id := e.startReady("listening", "--network", "base", "busybox", "probe", "serve", "tcp", ":7")
		e.want("links", e.exec(id, "sh", "-c", showLinks), "eth0 ")
		before := e.namespaceOf(id)

		e.ok("network", "connect", "--ip", "10.198.11.50", "--ip6", "fd98:11::50", "live", id)
		e.shows(id, "10.198.11.50/24", "ip -4 -o addr show dev eth1 | awk '{print $4}'")
		e.shows(id, "10.198.11.0/24 eth1 10.198.11.50", "ip route show 10.198.11.0/24 | awk '{print $1,$3,$NF}'")
		e.wantReport(parseReport(e.exec(id, "sh", "-c", `
echo "mac=$(cat /sys/class/net/eth1/address)"
echo "mtu=$(cat /sys/class/net/eth1/mtu)"
echo "address6=$(ip -6 -o addr show dev eth1 scope global | awk '{print $4}')"
echo "dial=$(probe dial tcp `+server+`:7 named)"`)), map[string]string{
			"mac": e.inspect(id, ".NetworkSettings.Networks.live.MacAddress"), "mtu": "1400", "address6": "fd98:11::50/64", "dial": "named",
		})
		answer, err := dialEcho("10.198.11.50:7", "inbound")
		if err != nil || answer != "inbound" {
			e.Errorf("dial of the new address = %q, %v", answer, err)
		}

		e.ok("network", "disconnect", "live", id)
		e.shows(id, "eth0", showLinks)
		e.want("routes", e.exec(id, "sh", "-c", "ip route | grep -c 10.198.11 || :"), "0")
		e.wantCode(e.docker("exec", id, "nslookup", server), 1)
		e.becomes("the namespace", before, func() string { return e.namespaceOf(id) })
		answer, err = dialEcho("10.198.10.2:7", "still")
		if err != nil || answer != "still" {
			e.Errorf("dial of the first address = %q, %v", answer, err)
		}
	})
}

// A daemon that was restarted under a running container (live-restore) connects and disconnects as before.
func TestNetworkConnectAfterRestart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.15.0/24", "base")
		e.ok("network", "create", "--subnet", "10.198.16.0/24", "live")
		id := e.startReady("listening", "--network", "base", "busybox", "probe", "serve", "tcp", ":7")
		e.noErr(e.d.stop())
		e.noErr(e.d.start())
		e.ok("network", "connect", "--ip", "10.198.16.50", "live", id)
		e.shows(id, "10.198.16.50/24", "ip -4 -o addr show dev eth1 | awk '{print $4}'")
		for _, address := range []string{"10.198.15.2:7", "10.198.16.50:7"} {
			if answer, err := dialEcho(address, "hello"); err != nil || answer != "hello" {
				e.Errorf("dial of %s = %q, %v", address, answer, err)
			}
		}
		e.ok("network", "disconnect", "live", id)
		e.shows(id, "eth0", showLinks)
	})
}

// The default route is where Docker puts it. On Docker's own bridge there are no names, and with the first network that has some
// there are.
func TestNetworkMoves(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.12.0/24", "first")
		e.ok("network", "create", "--subnet", "10.198.13.0/24", "second")
		server := e.rt.name + "-server"
		e.startReady("listening", "--network", "second", "--name", server, "busybox", "probe", "serve", "tcp", ":7")
		id := e.start("--network", "first", "busybox", "sleep", "1000")
		e.ok("network", "connect", "second", id)
		e.shows(id, "eth0 eth1", showLinks)
		e.want("default route", e.exec(id, "sh", "-c", showDefault), "10.198.12.1 eth0")
		e.ok("network", "disconnect", "first", id)
		e.shows(id, "10.198.13.1 eth1", showDefault)
		e.shows(id, "eth1", showLinks)
		e.want("dial", e.exec(id, "probe", "dial", "tcp", server+":7", "moved"), "moved")
		e.ok("network", "connect", "first", id)
		e.shows(id, "2", "ls /sys/class/net | grep -c eth") // Docker 26 gives no name twice, 29 does

		plain := e.start("busybox", "sleep", "1000")
		e.ok("network", "connect", "second", plain)
		e.shows(plain, "eth0 eth1", showLinks)
		e.shows(plain, "by name", "probe dial tcp "+server+":7 'by name'")
		e.shows(plain, "outside", "probe dial tcp "+e.d.gateway+":"+e.echoServer(e.d.gateway)+" outside")
	})
}

// Twenty times leave nothing: no tap, no filter, no device.
func TestNetworkConnectTwentyTimes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.14.0/24", "often")
		id := e.start("busybox", "sleep", "1000")
		before, devices := e.namespaceOf(id), e.exec(id, "sh", "-c", showDevices)
		for i := range 20 {
			address := fmt.Sprintf("10.198.14.%d", 100+i)
			e.ok("network", "connect", "--ip", address, "often", id)
			e.shows(id, address+"/24", "ip -4 -o addr show | awk '/10.198.14/ {print $4}'")
			e.want("ping", e.exec(id, "sh", "-c", "ping -c 1 -W 10 10.198.14.1 | grep -c ' 0% packet loss'"), "1")
			e.ok("network", "disconnect", "often", id)
			e.shows(id, "eth0", showLinks)
		}
		e.becomes("the namespace", before, func() string { return e.namespaceOf(id) })
		e.shows(id, devices, showDevices)
	})
}

// What is connected during a pause is there afterwards.
func TestNetworkConnectWhilePaused(t *testing.T) {
	eachRuntime(t, func(e *env) {
		for _, n := range []string{"5", "6"} {
			e.ok("network", "create", "--subnet", "10.198.1"+n+".0/24", "net"+n)
		}
		id := e.start("--network", "net5", "busybox", "sleep", "1000")
		e.ok("pause", id)
		e.ok("network", "connect", "--ip", "10.198.16.50", "net6", id)
		time.Sleep(time.Second) // the pause itself
		e.ok("unpause", id)
		e.shows(id, "10.198.16.50/24", "ip -4 -o addr show dev eth1 | awk '{print $4}'")
		e.ok("pause", id)
		e.ok("network", "disconnect", "net5", id)
		e.ok("unpause", id)
		e.shows(id, "eth1", showLinks)
		e.shows(id, "10.198.16.1 eth1", showDefault)
	})
}

// What is changed in the namespace by hand changes inside; what the container has changed of its own stays.
func TestNetworkChangesByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("live-net", "while [ ! -e /end ]; do sleep .1; done")
		before := h.madeNetwork()
		c := h.create(b)
		c.start()
		shows := func(want, script string) {
			h.Helper()
			h.becomes(script, want, func() string { return strings.TrimSpace(h.cmd("exec", b.id, "sh", "-c", script).stdout) })
		}
		const addresses = "ip -4 -o addr show dev eth7 | awk '{print $4}' | sort | tr '\\n' ' '"
		h.must("exec", "--cap", "CAP_NET_ADMIN", b.id, "ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.77")
		h.shOut("ip -n bxns addr add 192.0.2.4/24 dev eth7")
		shows("192.0.2.3/24 192.0.2.4/24", addresses)
		h.shOut("ip -n bxns addr del 192.0.2.4/24 dev eth7; ip -n bxns route add 198.51.100.0/24 via 192.0.2.9")
		shows("192.0.2.3/24", addresses)
		shows("198.51.100.0/24 via 192.0.2.9 dev eth7", "ip route show 198.51.100.0/24")
		h.shOut("ip -n bxns route replace 198.51.100.0/24 via 192.0.2.10")
		shows("198.51.100.0/24 via 192.0.2.10 dev eth7", "ip route show 198.51.100.0/24")
		h.shOut("ip -n bxns route del 198.51.100.0/24")
		shows("", "ip route show 198.51.100.0/24")
		shows("203.0.113.0/24 via 192.0.2.77 dev eth7", "ip route show 203.0.113.0/24")
		h.shOut("ip -n bxns addr flush dev eth7 scope global")
		shows("", addresses)
		h.shOut("ip -n bxns addr add 192.0.2.3/24 dev eth7")
		shows("192.0.2.3/24", addresses)
		shows("1", "ping -c 1 -W 10 192.0.2.1 | grep -c ' 0% packet loss'")

		h.shOut("ip link set dev bxhost mtu 1300; ip -n bxns link set dev eth7 mtu 1300")
		shows("1300", "cat /sys/class/net/eth7/mtu")
		h.shOut("ip link set dev bxhost mtu 1500; ip -n bxns link set dev eth7 mtu 1500; ip -n bxns link set eth7 down; ip -n bxns link set eth7 name eth9; ip -n bxns link set eth9 up")
		shows("1500", "cat /sys/class/net/eth9/mtu")
		shows("1", "ping -c 1 -W 10 192.0.2.1 | grep -c ' 0% packet loss'")
		h.shOut("ip -n bxns link set eth9 down; ip -n bxns link set eth9 name eth7; ip -n bxns link set eth7 up")
		shows("eth7", "ls /sys/class/net | grep eth")

		// Comes and goes before anybody can look.
		for i := range 10 {
			h.shOut(fmt.Sprintf(`ip link add bxmore type veth peer name eth8 netns bxns
ip -n bxns addr add 198.51.100.%d/24 dev eth8; ip -n bxns link set eth8 up; ip link set bxmore up; ip link del bxmore`, i+1))
		}
		time.Sleep(time.Second)
		shows("eth7", "ls /sys/class/net | grep eth")
		shows("1", "ping -c 1 -W 10 192.0.2.1 | grep -c ' 0% packet loss'")

		h.cmd("exec", b.id, "touch", "/end") // may be killed with the container, which it ends
		h.want("end", c.end().String(), "exit code 0")
		h.must("delete", b.id)
		h.becomes("the namespace", before, h.madeNetwork)
	})
}

// A VM takes eight interfaces. The ninth is refused by name before the start, and while the container runs left out.
func TestNineInterfaces(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("nine", "sleep 1000")
		add := func(from, to int) {
			for i := from; i <= to; i++ {
				h.shOut(fmt.Sprintf("ip link add bxnine%d type veth peer name nine%[1]d netns bxns; ip -n bxns addr add 10.197.%[1]d.1/24 dev nine%[1]d", i))
			}
		}
		add(2, 9)
		h.wantFail("interface nine9: one of 9, and a VM takes at most 8 network interfaces", "create", "--bundle", b.dir, b.id)
		h.shOut("ip -n bxns link del nine9")
		c := h.create(b)
		c.start()
		h.want("links", h.must("exec", b.id, "sh", "-c", "ls /sys/class/net | grep -c -e nine -e eth7"), "8\n")
		add(9, 9)
		time.Sleep(time.Second)
		h.want("links with a ninth", h.must("exec", b.id, "sh", "-c", "ls /sys/class/net | grep -c -e nine -e eth7"), "8\n")
		h.shOut("ip -n bxns link del nine4")
		h.becomes("links without the fourth", "eth7 nine2 nine3 nine5 nine6 nine7 nine8 nine9", func() string {
			return strings.TrimSpace(h.cmd("exec", b.id, "sh", "-c", "ls /sys/class/net | grep -e nine -e eth7 | tr '\\n' ' '").stdout)
		})
		h.must("kill", b.id, "KILL")
		c.end()
	})
}
