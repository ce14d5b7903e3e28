package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// greeting is QEMU 7.2's, as recorded.
const greeting = `{"QMP": {"version": {"qemu": {"micro": 19, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u16"}, "capabilities": ["oob"]}}` + "\r\n"

// fakeQEMU is the other end of a connection.
type fakeQEMU struct {
	t    *testing.T
	conn *net.UnixConn
	in   *bufio.Reader
}

func (f *fakeQEMU) send(line string) {
	// A client that has hung up is what some tests are about.
	f.conn.Write([]byte(line + "\r\n"))
}

// command reads one command and returns its name, arguments and id.
func (f *fakeQEMU) command() (name string, args json.RawMessage, id string) {
	line, err := f.in.ReadBytes('\n')
	if err != nil {
		if !errors.Is(err, io.EOF) {
			f.t.Errorf("read command: %v", err)
		}
		return "", nil, ""
	}
	var req struct {
		Execute   string
		Arguments json.RawMessage
		ID        string
	}
	if err := json.Unmarshal(line, &req); err != nil {
		f.t.Errorf("command %q: %v", line, err)
	}
	return req.Execute, req.Arguments, req.ID
}

func (f *fakeQEMU) reply(id, member string) {
	f.send(fmt.Sprintf(`{%s, "id": %q}`, member, id))
}

func pair(t *testing.T) (*net.UnixConn, *fakeQEMU) {
	t.Helper()
	conn, peer, err := fdpass.Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.FileConn(peer)
	peer.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return conn, &fakeQEMU{t: t, conn: other.(*net.UnixConn), in: bufio.NewReader(other)}
}

// connect returns a client in command mode.
func connect(t *testing.T) (*Client, *fakeQEMU) {
	t.Helper()
	conn, qemu := pair(t)
	go func() {
		qemu.conn.Write([]byte(greeting))
		_, _, id := qemu.command()
		qemu.reply(id, `"return": {}`)
	}()
	c, err := New(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, qemu
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestNewRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ said, want string }{
		"no greeting":        {`{"return": {}}` + "\n", "no greeting"},
		"not JSON":           {"(qemu) \n", "message:"},
		"end of stream":      {"", "EOF"},
		"message too large":  {`{"QMP": "` + strings.Repeat("x", maxMessage) + `"}` + "\n", "more than"},
		"capability refused": {greeting + `{"id": "1", "error": {"class": "GenericError", "desc": "nope"}}` + "\n", "qmp qmp_capabilities: nope (GenericError)"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, qemu := pair(t)
			go func() {
				said, reply, more := strings.Cut(tc.said, "\n")
				tail := ""
				if more {
					tail = "\n"
				}
				qemu.conn.Write([]byte(said + tail))
				if reply != "" {
					qemu.command()
					qemu.conn.Write([]byte(reply))
				}
				qemu.conn.CloseWrite()
			}()
			if c, err := New(testContext(t), conn); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("New = %v, %v, want an error with %q", c, err, tc.want)
			}
		})
	}
}

func TestNewEndsWithContext(t *testing.T) {
	conn, _ := pair(t) // never says a word
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("New = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestExecute(t *testing.T) {
	c, qemu := connect(t)
	go func() {
		name, args, id := qemu.command()
		if name != "query-status" || args != nil {
			t.Errorf("command = %s %s, want query-status without arguments", name, args)
		}
		qemu.send(`{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "RESUME"}`)
		qemu.reply(id, `"return": {"status": "running", "singlestep": false, "running": true}`)
		_, args, id = qemu.command()
		if string(args) != `{"id":"nic0"}` {
			t.Errorf("arguments = %s", args)
		}
		qemu.reply(id, `"error": {"class": "DeviceNotFound", "desc": "Device 'nic0' not found"}`)
	}()

	var status struct{ Running bool }
	if err := c.Execute(testContext(t), "query-status", nil, &status); err != nil || !status.Running {
		t.Errorf("query-status = %+v, %v", status, err)
	}
	err := c.Execute(testContext(t), "device_del", map[string]string{"id": "nic0"}, nil)
	var refusal *Error
	want := Error{Command: "device_del", Class: "DeviceNotFound", Desc: "Device 'nic0' not found"}
	if !errors.As(err, &refusal) || *refusal != want {
		t.Errorf("device_del = %v, want %v", err, &want)
	}
	if e := <-c.Events(); e.Name != "RESUME" || !e.Time.Equal(time.Unix(1700000000, 250e6)) {
		t.Errorf("event = %+v", e)
	}
}

// Replies find their callers whatever order they come in, and the late answer
// to a command that nobody waits for disturbs nothing.
func TestExecuteConcurrently(t *testing.T) {
	c, qemu := connect(t)
	const n = 50
	go func() {
		var replies []string
		for range n {
			_, args, id := qemu.command()
			replies = append(replies, fmt.Sprintf(`{"return": %s, "id": %q}`, args, id))
		}
		for i := range replies {
			qemu.send(replies[n-1-i])
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got []int
			if err := c.Execute(testContext(t), "echo", []int{i}, &got); err != nil || len(got) != 1 || got[0] != i {
				t.Errorf("echo %d = %v, %v", i, got, err)
			}
		})
	}
	wg.Wait()

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow = %v, want %v", err, context.DeadlineExceeded)
	}
	go func() {
		_, _, slow := qemu.command()
		_, _, quick := qemu.command()
		qemu.reply(slow, `"return": {}`)
		qemu.reply(quick, `"return": {}`)
	}()
	if err := c.Execute(testContext(t), "quick", nil, nil); err != nil {
		t.Errorf("after an abandoned command: %v", err)
	}
}

func TestEndOfConnection(t *testing.T) {
	for name, tc := range map[string]struct{ said, want string }{
		"hang-up":           {"", "closed by QEMU"},
		"garbage":           {"}\n", "message:"},
		"unknown id":        {`{"return": {}, "id": "77"}` + "\n", "unknown command"},
		"unparsed command":  {`{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n", "JSON parse error"},
		"neither of all":    {"{}\n", "neither reply nor event"},
		"message too large": {strings.Repeat(" ", maxMessage+1), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			c, qemu := connect(t)
			go func() {
				qemu.command()
				qemu.send(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, "timestamp": {"seconds": 1, "microseconds": 0}}`)
				qemu.conn.Write([]byte(tc.said))
				qemu.conn.CloseWrite()
			}()
			err := c.Execute(testContext(t), "quit", nil, nil)
			if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Execute = %v, want %v with %q", err, ErrEnded, tc.want)
			}
			<-c.Done()
			if !errors.Is(c.Err(), ErrEnded) {
				t.Errorf("Err = %v, want %v", c.Err(), ErrEnded)
			}
			// What came before the end is still delivered, then the channel ends.
			if e, ok := <-c.Events(); !ok || e.Name != "SHUTDOWN" || !strings.Contains(string(e.Data), "guest-shutdown") {
				t.Errorf("event = %+v, %v, want SHUTDOWN", e, ok)
			}
			if e, ok := <-c.Events(); ok {
				t.Errorf("event after the end: %+v", e)
			}
			if err := c.Execute(testContext(t), "stop", nil, nil); !errors.Is(err, ErrEnded) {
				t.Errorf("Execute after the end = %v, want %v", err, ErrEnded)
			}
		})
	}
}

func TestEventsNobodyReceives(t *testing.T) {
	c, qemu := connect(t)
	event := func(name, data string) {
		qemu.send(fmt.Sprintf(`{"event": %q, "data": %s, "timestamp": {"seconds": 1, "microseconds": 0}}`, name, data))
	}
	go func() {
		for range 10 * maxKept {
			event("RTC_CHANGE", `{"offset": 1}`)
			event("RESET", `{"guest": true}`)
		}
		event("DEVICE_DELETED", `{"device": "nic0"}`)
		event("SHUTDOWN", `{"guest": false}`)
		_, _, id := qemu.command()
		qemu.reply(id, `"return": {}`)
	}()
	if err := c.Execute(testContext(t), "query-status", nil, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) == 0 || got[len(got)-1] != "SHUTDOWN" {
		got = append(got, (<-c.Events()).Name)
	}
	if len(got) > maxKept || got[len(got)-2] != "DEVICE_DELETED" || got[1] != "RESET" {
		t.Errorf("%d events received, the last %v", len(got), got[len(got)-2:])
	}

	go func() {
		for i := range 2 * maxKept {
			event("DEVICE_DELETED", fmt.Sprintf(`{"device": "d%d"}`, i))
		}
	}()
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Error("connection survives a flood of distinct events")
	}
}

func TestExecuteWithFile(t *testing.T) {
	c, qemu := connect(t)
	received := make(chan *os.File, 2)
	go func() {
		for range 2 {
			buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8))
			n, oobn, _, _, err := qemu.conn.ReadMsgUnix(buf, oob)
			if err != nil {
				t.Errorf("recvmsg: %v", err)
				return
			}
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(messages) != 1 {
				t.Errorf("control messages = %v, %v", messages, err)
				return
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil || len(fds) != 1 {
				t.Errorf("descriptors = %v, %v", fds, err)
				return
			}
			received <- os.NewFile(uintptr(fds[0]), "received")
			var req struct{ ID string }
			if err := json.Unmarshal(buf[:n], &req); err != nil {
				t.Errorf("two commands with files at once: %v: %q", err, buf[:n])
			}
			time.Sleep(10 * time.Millisecond) // lets the second command overtake, if it could
			qemu.reply(req.ID, `"return": {}`)
		}
	}()

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := c.ExecuteWithFile(testContext(t), "getfd", map[string]string{"fdname": "tap0"}, nil, w); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.Close()
	for range 2 {
		f := <-received
		if _, err := f.WriteString("x"); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	if got, err := io.ReadAll(r); string(got) != "xx" || err != nil {
		t.Errorf("pipe = %q, %v", got, err)
	}
	if err := c.ExecuteWithFile(testContext(t), "getfd", nil, nil, nil); err == nil {
		t.Error("a nil file is accepted")
	}
}

// QEMU that reads nothing must not hold the caller longer than its context.
func TestWriteEndsWithContext(t *testing.T) {
	c, _ := connect(t)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	err := c.Execute(ctx, "echo", strings.Repeat("x", 1<<20), nil) // the socket holds far less
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Execute = %v, want %v", err, context.DeadlineExceeded)
	}
	<-c.Done() // half a command was sent
}
