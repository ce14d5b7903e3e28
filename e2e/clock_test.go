package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/tsc"
)

// askedForClocks answers each line with the clock since boot.
const askedForClocks = `echo up; while read line; do cat /proc/uptime; done`

// VMs that boot on a busy machine have clocks as fast as the machine's, and so each of them is saved as a template.
func TestClockOfBusyBoots(t *testing.T) {
	eachVM(t, func(e *env) {
		const most, patience = 20, 90 * time.Second
		for range runtime.NumCPU() {
			e.busyLoop()
		}
		h := e.byHand()
		b := h.bundle("clock", askedForClocks, nil)
		dir := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(dir)
		h.flags = append(h.flags, "--accel", "tcg")
		began, boots := time.Now(), 0
		for ; boots < most && time.Since(began) < patience; boots++ {
			id := fmt.Sprintf("%s-%d", b.id, boots)
			run := h.cmdline("run", "--bundle", b.dir, id)
			s := startSession(e.T, run, func() { _ = run.Process.Kill() })
			s.expect("up\n")
			if saved := h.templates(dir); len(saved) != 1 {
				e.Errorf("boot %d: saved as %q, want one template (it said %q)", boots, saved, s.text())
			}
			e.wantClockRate(fmt.Sprintf("boot %d", boots), s)
			h.noErr(s.in.Close())
			h.want("exit code", itoa(s.end()), "0")
			h.must("template", "delete", "--all")
		}
		e.Logf("%d boots in %v", boots, time.Since(began).Round(time.Second))
		if boots < 3 {
			e.Errorf("%d boots in %v are too few to say anything", boots, patience)
		}
	})
}

// busyLoop keeps a processor busy until the case ends.
func (e *env) busyLoop() {
	e.Helper()
	loop := exec.Command("sh", "-c", "while :; do :; done")
	e.noErr(loop.Start())
	e.Cleanup(func() {
		_ = loop.Process.Kill()
		_ = loop.Wait()
	})
}

// wantClockRate reads the container's clock twice. When it was read is known as well as the answers were quick: the time
// between the readings is made long enough to know the rate by a twentieth.
func (e *env) wantClockRate(what string, s *session) {
	e.Helper()
	read := func() (uptime float64, asked, answered time.Time) {
		asked = time.Now()
		s.send("now\n")
		text := strings.Fields(s.expect("\n"))
		uptime, err := strconv.ParseFloat(text[0], 64)
		e.noErr(err)
		return uptime, asked, time.Now()
	}
	up1, asked1, answered1 := read()
	for end := time.Now().Add(30 * time.Second); ; {
		time.Sleep(300 * time.Millisecond)
		up2, asked2, answered2 := read()
		const step = 0.01 // of /proc/uptime
		guest := up2 - up1
		least, most := asked2.Sub(answered1).Seconds()-step, answered2.Sub(asked1).Seconds()+step
		if guest < least*0.99 || guest > most*1.01 {
			e.Errorf("%s: the clock went on by %.2f s, want %.2f to %.2f", what, guest, least, most)
			return
		}
		if most/least < 1.05 {
			return
		}
		if time.Now().After(end) {
			e.Errorf("%s: the answers come too slowly to compare clocks: %.2f to %.2f s", what, least, most)
			return
		}
	}
}

// A VM whose clock is wrong is not saved as a template, and the log says why. Its container runs all the same.
func TestWrongClockIsNotSaved(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(dir)
		h.flags = append(h.flags, "--accel", "tcg")
		rate, err := tsc.Measure()
		h.noErr(err)
		b := h.bundle("wrongclock", "echo works", func(s *specs.Spec) {
			s.VM = &specs.VM{Kernel: specs.VMKernel{
				Path:       filepath.Join(filepath.Dir(e.rt.bin), "vmlinux-lean"),
				Parameters: []string{fmt.Sprintf("tsc_early_khz=%d", rate/2)},
			}}
		})
		for range 2 {
			from, stderr := h.startedFrom(b)
			h.want("template", from, "")
			h.wantPart("what is said", stderr, "save a template: the guest's clock is wrong")
		}
		h.want("templates", fmt.Sprint(h.templates(dir)), "[]")
	})
}

// A clock that is ahead after a pause is set back, as one is that is behind.
func TestClockAheadAfterPause(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("ahead", `date -s @4000000000 && echo set; read line; date +%s; exec sleep 1000`, func(s *specs.Spec) {
			for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
				*set = append(*set, "CAP_SYS_TIME")
			}
		})
		run := h.cmdline("run", "--bundle", b.dir, b.id)
		s := startSession(e.T, run, func() { _ = run.Process.Kill() })
		s.expect("set\n")
		h.must("pause", b.id)
		h.must("resume", b.id)
		s.send("now\n")
		got, err := strconv.ParseInt(strings.TrimSpace(s.expect("\n")), 10, 64)
		h.noErr(err)
		if now := time.Now().Unix(); got < now-20 || got > now+1 {
			e.Errorf("the clock says %d at %d", got, now)
		}
		h.must("kill", b.id, "KILL")
		h.want("exit code", itoa(s.end()), itoa(128+int(unix.SIGKILL)))
	})
}
