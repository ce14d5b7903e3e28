package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// echoServer answers on the host at address with what it is sent. It returns its port.
func (e *env) echoServer(address string) string {
	e.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	e.noErr(err)
	e.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed with the case
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // the other side judges what came back
			}()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	e.noErr(err)
	return port
}

// dialEcho sends text from the host to address and returns the answer.
func dialEcho(address, text string) (string, error) {
	return dialEchoOver("tcp", address, text, 20*time.Second)
}

// dialEchoOver is dialEcho over a network of package net's, with a bound on the answer.
func dialEchoOver(network, address, text string, timeout time.Duration) (string, error) {
	conn, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	buf := make([]byte, len(text))
	_, err = io.ReadFull(conn, buf)
	return string(buf), err
}

func TestBridgeNetwork(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// An address of the host that is not on the bridge: reached through the default route.
		e.shOut("ip addr add 198.51.100.1/32 dev lo")
		e.Cleanup(func() { e.shOut("ip addr del 198.51.100.1/32 dev lo") })
		id := e.startReady("listening", "-p", "18080:7", "-p", "18081:7/udp", "busybox", "sh", "-c",
			"probe serve udp :7 & exec probe serve tcp :7")
		address, gateway := e.inspect(id, ".NetworkSettings.Networks.bridge.IPAddress"), e.inspect(id, ".NetworkSettings.Networks.bridge.Gateway")
		address6 := e.inspect(id, ".NetworkSettings.Networks.bridge.GlobalIPv6Address")
		e.want("gateway", gateway, e.d.gateway)
		got := parseReport(e.exec(id, "sh", "-c", `
echo "address=$(ip -4 -o addr show dev eth0 | awk '{print $4}')"
echo "address6=$(ip -6 -o addr show dev eth0 scope global | awk '{print $4}')"
echo "mac=$(cat /sys/class/net/eth0/address)"
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
echo "route=$(ip route show default | awk '{print $3,$5}')"
echo "route6=$(ip -6 route show default | awk '{print $3,$5}')"
echo "links=$(ls /sys/class/net | grep -v -e tunl -e sit -e ip6 -e gre -e erspan -e vti | tr '\n' ' ')"
echo "lo=$(ip -4 -o addr show dev lo | awk '{print $4}')"
echo "ping=$(ping -c 1 -W 10 `+gateway+` | grep -c ' 0% packet loss')"
echo "ping6=$(ping -6 -c 1 -W 10 `+e.d.gateway6+` | grep -c ' 0% packet loss')"
echo "loopback=$(probe dial tcp 127.0.0.1:7 self)"
echo "hosts=$(grep -c "`+address+`" /etc/hosts)"
`))
		e.wantReport(got, map[string]string{
			"address": address + "/24", "address6": address6 + "/64", "mac": e.inspect(id, ".NetworkSettings.Networks.bridge.MacAddress"), "mtu": "1500",
			"route": gateway + " eth0", "route6": e.d.gateway6 + " eth0", "links": "eth0 lo ", "lo": "127.0.0.1/8",
			"ping": "1", "ping6": "1", "loopback": "self", "hosts": "1",
		})

		// Out to the host: on the bridge, beyond the gateway, over IPv6.
		for _, host := range []string{gateway, "198.51.100.1", e.d.gateway6} {
			port := e.echoServer(host)
			e.want("answer of "+host, e.exec(id, "probe", "dial", "tcp", net.JoinHostPort(host, port), "outbound"), "outbound")
		}
		// In from the host: to the address, to the published port at each of the host's addresses.
		for _, to := range []string{address + ":7", "[" + address6 + "]:7", gateway + ":18080", "127.0.0.1:18080", "198.51.100.1:18080"} {
			answer, err := dialEcho(to, "inbound")
			if err != nil || answer != "inbound" {
				e.Errorf("dial %s from the host = %q, %v", to, answer, err)
			}
		}
		udp, err := net.DialTimeout("udp", gateway+":18081", 10*time.Second)
		e.noErr(err)
		defer udp.Close()
		e.noErr(udp.SetDeadline(time.Now().Add(20 * time.Second)))
		_, err = io.WriteString(udp, "datagram")
		e.noErr(err)
		buf := make([]byte, 100)
		n, err := udp.Read(buf)
		if err != nil || string(buf[:n]) != "datagram" {
			e.Errorf("published udp port answers %q, %v", buf[:n], err)
		}

		// Container to container, by address, and much of it.
		e.wantPart("echoed between containers", e.runOK("busybox", "probe", "echo-sum", address+":7", "20000000"), "20000000 bytes")
	})
}

func TestClosedPortRefuses(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		_, err := dialEcho(e.inspect(id, ".NetworkSettings.Networks.bridge.IPAddress")+":7", "x")
		if err == nil || !strings.Contains(err.Error(), "refused") {
			e.Errorf("dial of a closed port: %v, want it refused", err)
		}
		r := e.docker("exec", id, "probe", "dial", "tcp", e.d.gateway+":9", "x")
		e.wantPart("dial of the host's closed port", r.stderr, "refused")
	})
}

func TestTwoNetworksMTUAndNone(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.1.0/24", "-o", "com.docker.network.driver.mtu=1400", "small")
		e.ok("network", "create", "--subnet", "10.198.2.0/24", "other")
		one := e.startReady("listening", "--network", "small", "--ip", "10.198.1.50", "--mac-address", "02:42:00:00:00:50", "busybox", "probe", "serve", "tcp", ":7")
		e.wantReport(parseReport(e.exec(one, "sh", "-c", `echo "mac=$(cat /sys/class/net/eth0/address)"; echo "mtu=$(cat /sys/class/net/eth0/mtu)"`)),
			map[string]string{"mac": "02:42:00:00:00:50", "mtu": "1400"})

		// created, connected to a second network, then started: two interfaces.
		two := e.ok("create", "--runtime", e.rt.name, "--network", "small", "busybox", "sleep", "1000")
		e.ok("network", "connect", "--ip", "10.198.2.60", "other", two)
		e.ok("start", two)
		e.want("addresses", e.exec(two, "sh", "-c", "ip -4 -o addr show | awk '$2!=\"lo\"{print $4}' | sort | sed 's/[.0-9]*60/60/' | tail -1"), "60/24")
		e.want("dial over the first", e.exec(two, "probe", "dial", "tcp", "10.198.1.50:7", "hello"), "hello")
		port := e.echoServer("10.198.2.1")
		e.want("dial over the second", e.exec(two, "probe", "dial", "tcp", "10.198.2.1:"+port, "hello"), "hello")

		got := e.report("--network", "none", "busybox", "sh", "-c", `
echo "links=$(ls /sys/class/net | grep -c -e eth -e ens -e enp)"
echo "routes=$(ip route | wc -l)"
echo "lo=$(ping -c 1 127.0.0.1 | grep -c ' 0% packet loss')"`)
		e.wantReport(got, map[string]string{"links": "0", "routes": "0", "lo": "1"})
	})
}

// What VM runtimes break first: the bytes that a published port carries while the container is busy, and many connections.
func TestManyConnections(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.startReady("listening", "busybox", "probe", "serve", "tcp", ":7")
		address := e.inspect(id, ".NetworkSettings.Networks.bridge.IPAddress") + ":7"
		errs := make(chan error)
		const n = 50
		for i := range n {
			go func() {
				text := strings.Repeat(fmt.Sprintf("connection %d ", i), 1000)
				answer, err := dialEcho(address, text)
				if err == nil && answer != text {
					err = fmt.Errorf("connection %d: the answer differs", i)
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				e.Error(err)
			}
		}
	})
}

// The host's own network is not for a VM to take over: it has one that reaches what the host reaches, and the host keeps
// its interfaces. The host's loopback is at QEMU's gateway, as 127.0.0.1 is the container's own.
func TestHostNetwork(t *testing.T) {
	eachVM(t, func(e *env) {
		port := e.echoServer(e.d.gateway)
		e.want("address", e.runOK("--network", "host", "busybox", "sh", "-c", "ip -o -4 addr show dev eth0 | awk '{ print $4 }'"), "10.0.2.15/24")
		e.want("what a server on the host says", e.runOK("--network", "host", "busybox", "probe", "dial", "tcp", e.d.gateway+":"+port, "hello"), "hello")
		port = e.echoServer("127.0.0.1")
		e.want("what a server on the host's loopback says", e.runOK("--network", "host", "busybox", "probe", "dial", "tcp", "10.0.2.2:"+port, "hello"), "hello")
		r := e.run("--network", "host", "busybox", "probe", "dial", "tcp", "127.0.0.1:"+port, "hello")
		e.wantPart("dial of the container's own loopback", r.stderr, "refused")
	})
}

// Where a container with the host's network listens, the host's own addresses lead there.
func TestHostNetworkPorts(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--network", "host", "busybox", "sleep", "1000")
		serve := func(network, address string) {
			e.Helper()
			e.ok("exec", "--detach", id, "probe", "serve", network, address)
		}
		answers := func(network, address string) {
			e.Helper()
			if err := waitFor("an answer at "+network+" "+address, func() bool {
				answer, err := dialEchoOver(network, address, "hello", time.Second)
				return err == nil && answer == "hello"
			}); err != nil {
				e.Fatal(err)
			}
		}
		refuses := func(address string) {
			e.Helper()
			if err := waitFor("an error at "+address, func() bool {
				_, err := dialEcho(address, "hello")
				return errors.Is(err, syscall.ECONNREFUSED)
			}); err != nil {
				e.Error(err)
			}
		}
		serve("tcp", ":5871")
		serve("tcp4", "0.0.0.0:5872")
		serve("tcp", "127.0.0.1:5873")
		serve("tcp", "[::1]:5874")
		serve("udp", ":5875")
		serve("udp", "127.0.0.1:5876")
		serve("tcp", ":871") // as root may
		for _, address := range []string{"127.0.0.1:5871", e.d.gateway + ":5871", "[::1]:5871", e.d.gateway + ":5872", "127.0.0.1:5873", "[::1]:5874", "127.0.0.1:871"} {
			answers("tcp", address)
		}
		for _, address := range []string{"127.0.0.1:5875", e.d.gateway + ":5875", "127.0.0.1:5876"} {
			answers("udp", address)
		}
		refuses(e.d.gateway + ":5873")
		refuses("[::1]:5872")
		refuses("127.0.0.1:5870") // nobody's

		errs := make(chan error)
		const n = 50
		text := strings.Repeat("0123456789abcdef", 1<<14)
		for range n {
			go func() {
				answer, err := dialEcho("127.0.0.1:5871", text)
				if err == nil && answer != text {
					err = errors.New("another text comes back")
				}
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; err != nil {
				e.Error(err)
			}
		}

		e.ok("exec", id, "sh", "-c", `for p in /proc/[0-9]*; do grep -q ":5871" $p/cmdline && [ $p != /proc/$$ ] && kill ${p#/proc/}; done; true`)
		refuses("127.0.0.1:5871")
		serve("tcp", ":5871")
		answers("tcp", "127.0.0.1:5871")
		e.ok("rm", "--force", id)
		refuses("127.0.0.1:5871")
	})
}

// A port of the host's that is taken remains whose it is.
func TestHostNetworkPortTaken(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		port := e.echoServer("127.0.0.1")
		log := filepath.Join(h.diskDir(), "log")
		b := h.bundle("taken", fmt.Sprintf("probe serve tcp 127.0.0.1:%s & probe serve tcp 127.0.0.1:5877", port), func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
		})
		h.flags = []string{"--log", log}
		c := h.create(b)
		h.flags = nil
		c.start()
		if err := waitFor("the port that is free", func() bool { answer, err := dialEcho("127.0.0.1:5877", "x"); return err == nil && answer == "x" }); err != nil {
			h.Error(err)
		}
		taken := regexp.MustCompile(`127\.0\.0\.1:` + port + `.*address already in use`)
		h.noErr(waitFor("the log names the port that is taken", func() bool {
			text, err := os.ReadFile(log)
			return err == nil && taken.Match(text)
		}))
		h.must("delete", "--force", b.id)
		h.wantNoProcess(b)
	})
}
