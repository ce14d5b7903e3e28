package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetwork calls f in the network namespace of a running container, as crictl port-forward does.
func (e *env) inNetwork(id string, f func() error) error {
	e.Helper()
	ns, err := os.Open("/proc/" + e.inspect(id, ".State.Pid") + "/ns/net")
	e.noErr(err)
	defer ns.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// dialLimit is how long a dial may take on a busy machine.
const dialLimit = 10 * time.Second

// dialWithin dials an address of digits in the namespace of a container.
func (e *env) dialWithin(id, network, address string, limit time.Duration) (conn net.Conn, err error) {
	e.Helper()
	err = e.inNetwork(id, func() error {
		conn, err = net.DialTimeout(network, address, limit)
		return err
	})
	if err == nil {
		e.noErr(conn.SetDeadline(time.Now().Add(deadline)))
	}
	return conn, err
}

// echoWithin sends text from the namespace of a container and returns what comes back.
func (e *env) echoWithin(id, network, address, text string) (string, error) {
	e.Helper()
	conn, err := e.dialWithin(id, network, address, dialLimit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if network == "udp" {
		e.noErr(conn.SetDeadline(time.Now().Add(10 * time.Second)))
	}
	go func() { _, _ = io.WriteString(conn, text) }() // the answer tells
	buf := make([]byte, len(text))
	_, err = io.ReadFull(conn, buf)
	return string(buf), err
}

func (e *env) wantEchoWithin(id, network, address string) {
	e.Helper()
	if answer, err := e.echoWithin(id, network, address, "inside"); err != nil || answer != "inside" {
		e.Errorf("%s to %s from the namespace = %q, %v", network, address, answer, err)
	}
}

// loopbackServers serve on 127.0.0.1 only and on all addresses.
const loopbackServers = "probe serve udp 127.0.0.1:7 >/dev/null & probe serve udp :8 >/dev/null & probe serve tcp 127.0.0.1:7 >/dev/null & exec probe serve tcp :8"

// A program in the container's network namespace reaches at 127.0.0.1 what listens in the container.
func TestLoopbackOfNamespace(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.20.0/24", "loopback")
		id := e.startReady("listening", "--network", "loopback", "--name", e.rt.name+"-server", "busybox", "sh", "-c", loopbackServers)
		e.noErr(waitFor("all servers", func() bool {
			return strings.Count(e.exec(id, "sh", "-c", "netstat -lntu"), ":7 ")+strings.Count(e.exec(id, "sh", "-c", "netstat -lntu"), ":8 ") == 4
		}))
		for _, network := range []string{"tcp", "udp"} {
			e.wantEchoWithin(id, network, "127.0.0.1:7")
			e.wantEchoWithin(id, network, "127.0.0.1:8")
			e.wantEchoWithin(id, network, e.inspect(id, ".NetworkSettings.Networks.loopback.IPAddress")+":8")
		}
		e.want("the container for itself", e.exec(id, "probe", "dial", "tcp", "127.0.0.1:7", "own"), "own")

		began := time.Now()
		if _, err := e.dialWithin(id, "tcp", "127.0.0.1:9", dialLimit); !errors.Is(err, unix.ECONNREFUSED) {
			e.Errorf("TCP to a closed port: %v, want it refused", err)
		}
		if _, err := e.echoWithin(id, "udp", "127.0.0.1:9", "x"); !errors.Is(err, unix.ECONNREFUSED) {
			e.Errorf("UDP to a closed port: %v, want it refused", err)
		}
		if took := time.Since(began); took > dialLimit/2 {
			e.Errorf("closed ports refuse after %s", took)
		}

		e.wholeWithin(id, "127.0.0.1:7", 64<<20)
		errs := make(chan error)
		const n = 50
		for i := range n {
			go func() {
				text := strings.Repeat(fmt.Sprintf("connection %d ", i), 1000)
				answer, err := e.echoWithin(id, "tcp", "127.0.0.1:7", text)
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

		// Docker's resolver is the namespace's.
		for _, network := range []string{"tcp", "udp"} {
			e.want("answer of 127.0.0.11 over "+network, e.addressAt(id, network, e.rt.name+"-server"), e.inspect(id, ".NetworkSettings.Networks.loopback.IPAddress"))
		}
		e.wantPart("nslookup inside", e.exec(id, "nslookup", e.rt.name+"-server"), e.inspect(id, ".NetworkSettings.Networks.loopback.IPAddress"))
	})
}

// wholeWithin sends a stream from the namespace of a container and compares what is echoed with it.
func (e *env) wholeWithin(id, address string, size int) {
	e.Helper()
	conn, err := e.dialWithin(id, "tcp", address, dialLimit)
	e.noErr(err)
	defer conn.Close()
	sent := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	for i := 0; i < len(sent); i += 1 << 16 {
		copy(sent[i:], strconv.Itoa(i))
	}
	go func() { _, _ = conn.Write(sent) }() // the answer tells
	began := time.Now()
	got := make([]byte, size)
	n, err := io.ReadFull(conn, got)
	if err != nil || !bytes.Equal(got, sent) {
		e.Errorf("%d of %d bytes came back, %v", n, size, err)
	}
	e.Logf("%d MiB each way in %s", size>>20, time.Since(began).Round(time.Millisecond))
}

// addressAt asks 127.0.0.11 in the namespace of a container for a name's address.
func (e *env) addressAt(id, network, name string) string {
	e.Helper()
	query := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name))}
	query = append(append(query, name...), 0, 0, 1, 0, 1)
	if network == "tcp" {
		query = append([]byte{0, byte(len(query))}, query...)
	}
	conn, err := e.dialWithin(id, network, "127.0.0.11:53", dialLimit)
	e.noErr(err)
	defer conn.Close()
	e.noErr(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	_, err = conn.Write(query)
	e.noErr(err)
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	e.noErr(err)
	if n < 4 {
		e.Fatalf("answer of %d bytes", n)
	}
	return net.IP(answer[n-4 : n]).String() // the one record ends with it
}

// The container does not reach what listens in the namespace on the host: neither by the loopback there, nor at the addresses
// where clients from there show up.
func TestLoopbackIsOneWay(t *testing.T) {
	eachVM(t, func(e *env) {
		id := e.startReady("listening", "--cap-add", "NET_ADMIN", "busybox", "probe", "serve", "tcp", "127.0.0.1:7")
		for _, address := range []string{"127.0.0.1:9000", "0.0.0.0:9001"} {
			e.noErr(e.inNetwork(id, func() error {
				l, err := net.Listen("tcp4", address)
				if err == nil {
					e.Cleanup(func() { _ = l.Close() })
				}
				return err
			}))
		}
		e.wantEchoWithin(id, "tcp", "127.0.0.1:7")
		clients := strings.Fields(e.exec(id, "sh", "-c", "ip neigh | awk '/PERMANENT/ {print $1}'"))
		if len(clients) != 2 {
			e.Fatalf("addresses of clients = %q, want two", clients)
		}
		for _, ip := range append(clients, "127.0.0.1", "127.0.0.11") {
			for _, port := range []string{"9000", "9001"} {
				if r := e.docker("exec", id, "timeout", "1", "probe", "dial", "tcp", ip+":"+port, "x"); r.code == 0 {
					e.Errorf("the container has connected to %s:%s of the namespace", ip, port)
				}
			}
		}
	})
}

// 127.0.0.1 leads to the container by whatever network it has, and to nothing without one.
func TestLoopbackFollowsNetworks(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.21.0/24", "one")
		e.ok("network", "create", "--subnet", "10.198.22.0/24", "two")
		id := e.startReady("listening", "--network", "one", "busybox", "sh", "-c", loopbackServers)
		reaches := func() string { // what is under way when a network goes is lost
			conn, err := e.dialWithin(id, "tcp", "127.0.0.1:7", time.Second)
			if err != nil {
				return err.Error()
			}
			defer conn.Close()
			e.noErr(conn.SetDeadline(time.Now().Add(time.Second)))
			_, err = io.WriteString(conn, "inside")
			e.noErr(err)
			answer := make([]byte, 6)
			if _, err := io.ReadFull(conn, answer); err != nil {
				return err.Error()
			}
			return string(answer)
		}
		e.becomes("by the first network", "inside", reaches)
		e.ok("network", "connect", "two", id)
		e.shows(id, "eth0 eth1", showLinks)
		e.becomes("by both", "inside", reaches)
		e.ok("network", "disconnect", "one", id)
		e.becomes("by the second", "inside", reaches)
		e.wantEchoWithin(id, "udp", "127.0.0.1:8")
		e.shows(id, "eth1", showLinks)
		e.ok("network", "disconnect", "two", id)
		e.shows(id, "", showLinks)
		if e.rt.isVM() {
			if _, err := e.dialWithin(id, "tcp", "127.0.0.1:7", dialLimit); !errors.Is(err, unix.ECONNREFUSED) {
				e.Errorf("dial without a network: %v, want it refused", err)
			}
		}
		e.ok("network", "connect", "one", id)
		e.becomes("by the first again", "inside", reaches)
	})
}
