package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// statsEvent is what callers of runc read.
type statsEvent struct {
	Type string
	ID   string
	Data struct {
		CPU struct {
			Usage struct{ Total, Kernel, User uint64 }
		}
		Memory struct {
			Usage struct{ Limit, Usage, Max uint64 }
			Raw   map[string]uint64
		}
		Pids struct{ Current, Limit uint64 }
	}
}

func TestEvents(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		limit, pids := int64(64<<20), int64(77)
		b := h.bundle("events", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo spun; sleep 1000 & sleep 1000", func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
		})
		c := h.create(b)
		c.start()
		h.expect(c.out, "spun\n")
		once := h.stats(b.id)
		h.want("type and id", once.Type+" "+once.ID, "stats "+b.id)
		if cpu := once.Data.CPU.Usage; cpu.Total < 1e6 || cpu.Total > 120e9 {
			h.Errorf("CPU time = %+v, want what a loop takes", cpu)
		}
		if m := once.Data.Memory; m.Usage.Limit != uint64(limit) || m.Usage.Usage == 0 || m.Usage.Usage > uint64(limit) || m.Usage.Max < m.Usage.Usage || len(m.Raw) == 0 {
			h.Errorf("memory = %+v, want the container's own within %d", m, limit)
		}
		if p := once.Data.Pids; p.Limit != 77 || p.Current < 2 || p.Current > 3 {
			h.Errorf("pids = %+v, want 2 or 3 of 77", p)
		}
		h.wantFail("interval", "events", "--interval", "0", b.id)

		stream := startSession(h.T, h.cmdline("events", "--interval", "300ms", b.id), func() {})
		stream.expect(`"type":"stats"`)
		h.wantCode(h.cmd("exec", b.id, "probe", "hog", "300"), 137)
		stream.expect(`{"type":"oom","id":"` + b.id + `"}`)
		h.must("pause", b.id)
		stopped := h.stats(b.id)
		if stopped.Data.CPU.Usage.Total < once.Data.CPU.Usage.Total || stopped.Data.Pids.Current != once.Data.Pids.Current {
			h.Errorf("stats of the paused one = %+v, want no less than %+v", stopped.Data, once.Data)
		}
		h.must("resume", b.id)
		h.must("kill", b.id, "KILL")
		c.wantKilled()
		h.waitStatus(b.id, specs.StateStopped)
		h.wantFail("is not running", "events", "--stats", b.id)
		h.must("delete", b.id) // runc's stream ends with the cgroup
		h.want("exit code of events", itoa(stream.end()), "0")
		for line := range strings.Lines(stream.text()) {
			var event statsEvent
			if err := json.Unmarshal([]byte(line), &event); err != nil && !strings.HasPrefix(line, "time=") {
				h.Errorf("events: %q: %v", line, err)
			}
		}
	})
}

func (h *hand) stats(id string) (s statsEvent) {
	h.Helper()
	h.noErr(json.Unmarshal([]byte(h.must("events", "--stats", id)), &s))
	return s
}
