package main

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// rehearse has the guest go through a container's life before there is a session.
func (v *vm) rehearse(port net.Conn, spec *specs.Spec) *guestproto.Error {
	v.t.Helper()
	_ = port.SetDeadline(time.Now().Add(bootTimeout))
	if _, err := port.Write([]byte{guestproto.Rehearsal}); err != nil {
		v.t.Fatal(err)
	}
	req := guestproto.RehearsalRequest{
		Hello:  guestproto.HelloRequest{Version: guestproto.Version, UnixNano: time.Now().UnixNano()},
		Create: guestproto.CreateRequest{ID: "rehearsal", Spec: spec, NullStdin: true},
	}
	if err := guestproto.WriteFrame(port, req); err != nil {
		v.t.Fatal(err)
	}
	var rep guestproto.Reply
	if err := guestproto.ReadFrame(port, guestproto.MaxReply, &rep); err != nil {
		v.t.Fatal(err)
	}
	_ = port.SetDeadline(time.Time{})
	return rep.Error
}

// A container finds nothing of those that were rehearsed, the one among them that failed included.
func TestRehearsal(t *testing.T) {
	v, port := silentVM(t)
	limited := dockerSpec(shell("echo said; sleep 1000 & echo x >/tmp/rehearsed"))
	limit := int64(64 << 20)
	limited.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if err := v.rehearse(port, limited); err != nil {
		t.Fatal(err)
	}
	if err := v.rehearse(port, dockerSpec(shell("exit 3"))); err == nil || !strings.Contains(err.Message, "status 3") {
		t.Errorf("a program that fails: %v", err)
	}
	v.greet(port)
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: dockerSpec(shell("sleep 1000"))}, nil)
	wantError(t, v.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "c2", Spec: dockerSpec(shell("true"))}, nil), guestproto.CodeBadRequest, "")
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
	look(t, v, []probe{
		{"cat /sys/fs/cgroup/memory.max", "max"},
		{"cat /sys/fs/cgroup/pids.current", "2\n"},
		{"grep -c virtiofs /proc/self/mountinfo", "1\n"},
		{"cat /tmp/rehearsed", "x\n"}, // the share is the same here
		{"hostname", "box"},
	}, nil)
	var stats guestproto.StatsReply
	v.ok(guestproto.OpStats, nil, &stats)
	if stats.Memory.Limit != guestproto.NoLimit {
		t.Errorf("the memory limit is %d, want none", stats.Memory.Limit)
	}
	v.ok(guestproto.OpSignal, guestproto.SignalRequest{Process: guestproto.Init, Signal: 9}, nil)
	var end guestproto.WaitReply
	v.ok(guestproto.OpWait, guestproto.WaitRequest{Process: guestproto.Init}, &end)
	if end.Signal != 9 {
		t.Errorf("ended with %s, want signal 9", fmt.Sprint(end))
	}
}

// A guest that is asked how fast its clock is says so, and then takes a session.
func TestClockRate(t *testing.T) {
	v, port := silentVM(t)
	_ = port.SetDeadline(time.Now().Add(bootTimeout))
	if _, err := port.Write([]byte{guestproto.ClockRate}); err != nil {
		t.Fatal(err)
	}
	var rep guestproto.Reply
	if err := guestproto.ReadFrame(port, guestproto.MaxReply, &rep); err != nil {
		t.Fatal(err)
	}
	_ = port.SetDeadline(time.Time{})
	var rate guestproto.ClockRateReply
	if err := json.Unmarshal(rep.Body, &rate); err != nil || rate.TSCKHz < 100_000 || rate.TSCKHz > 1e9 {
		t.Errorf("clock rate = %s, %v, %v", rep.Body, rep.Error, err) // its kernel was not told
	}
	v.greet(port)
}
