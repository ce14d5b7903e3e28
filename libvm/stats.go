package libvm

import (
	"errors"
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
)

// Stats is what a container uses, in the form of runc's events command. CPU,
// memory and pids are the container's own, counted in the guest; block I/O is
// what virtiofsd did on the host for it. Times are in nanoseconds, sizes in bytes.
type Stats struct {
	CPU               CPUStats            `json:"cpu"`
	CPUSet            struct{}            `json:"cpuset"`
	Memory            MemoryStats         `json:"memory"`
	Pids              PidsStats           `json:"pids"`
	Blkio             hostcgroup.Blkio    `json:"blkio"`
	Hugetlb           map[string]struct{} `json:"hugetlb"`
	IntelRdt          struct{}            `json:"intel_rdt"`
	NetworkInterfaces []struct{}          `json:"network_interfaces"`
}

// CPUStats is a container's use of processors, in nanoseconds.
type CPUStats struct {
	Usage struct {
		Total  uint64 `json:"total"`
		Kernel uint64 `json:"kernel"`
		User   uint64 `json:"user"`
	} `json:"usage"`
	Throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    uint64 `json:"throttledTime,omitempty"`
	} `json:"throttling"`
}

// MemoryStats is a container's use of memory, in bytes. Swap counts memory and swap
// together, as cgroup v1 does, and as runc does with v2.
type MemoryStats struct {
	Cache     uint64            `json:"cache,omitempty"`
	Usage     MemoryEntry       `json:"usage"`
	Swap      MemoryEntry       `json:"swap"`
	Kernel    MemoryEntry       `json:"kernel"`
	KernelTCP MemoryEntry       `json:"kernelTCP"`
	Raw       map[string]uint64 `json:"raw,omitempty"`
}

// MemoryEntry is the usage of one kind of memory, in bytes. Max is the highest
// usage so far, Failcnt how often the usage met the limit.
type MemoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// PidsStats is the number of a container's processes and threads. A zero Limit
// means that there is none.
type PidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

// Stats reads a container's usage. For a paused container it returns the usage at
// the pause. For a stopped one the error matches ErrNotRunning.
func (c *Container) Stats() (*Stats, error) {
	if c.Status() == specs.StateStopped {
		return nil, ErrNotRunning
	}
	conn, reply, err := c.dial(controlRequest{Op: controlStats})
	if err != nil {
		return nil, err
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	if reply.Stats == nil {
		return nil, errors.New("stats: no answer")
	}
	stats := statsOf(reply.Stats)
	if c.Cgroup != nil {
		cg, err := hostcgroup.Load(*c.Cgroup)
		if err != nil {
			return nil, cgroupError(err)
		}
		if stats.Blkio, err = cg.Blkio(); err != nil {
			return nil, cgroupError(err)
		}
	}
	return stats, nil
}

// statsOf gives the guest's numbers runc's form.
func statsOf(r *guestproto.StatsReply) *Stats {
	s := &Stats{Hugetlb: map[string]struct{}{}}
	s.CPU.Usage.Total, s.CPU.Usage.Kernel, s.CPU.Usage.User = nanos(r.CPU.UsageMicros), nanos(r.CPU.SystemMicros), nanos(r.CPU.UserMicros)
	s.CPU.Throttling.Periods, s.CPU.Throttling.ThrottledPeriods = r.CPU.Periods, r.CPU.ThrottledPeriods
	s.CPU.Throttling.ThrottledTime = nanos(r.CPU.ThrottledMicros)
	m := r.Memory
	s.Memory = MemoryStats{
		Cache:     m.Detail["file"],
		Usage:     MemoryEntry{Limit: m.Limit, Usage: m.Usage, Max: m.Peak, Failcnt: m.AtLimit},
		Swap:      MemoryEntry{Limit: addLimits(m.Limit, m.SwapLimit), Usage: addLimits(m.Usage, m.Swap)},
		Kernel:    MemoryEntry{Limit: guestproto.NoLimit, Usage: m.Kernel},
		KernelTCP: MemoryEntry{Limit: guestproto.NoLimit},
		Raw:       m.Detail,
	}
	s.Pids.Current = r.Pids.Current
	if r.Pids.Limit != guestproto.NoLimit {
		s.Pids.Limit = r.Pids.Limit
	}
	return s
}

// nanos and addLimits stop at the largest number: the guest's may be anything.
func nanos(micros uint64) uint64 {
	if micros > math.MaxUint64/1000 {
		return math.MaxUint64
	}
	return micros * 1000
}

func addLimits(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// What memory.stat may say: a kernel's names, and some more than it has.
const (
	maxDetails    = 128
	maxDetailName = 64
)

// An Event is what a container's life brings besides its usage; so far, that the
// guest's kernel has killed a process of it for lack of memory.
type Event string

// EventOOM has runc's name.
const EventOOM Event = "oom"

// Events returns a channel that gets the container's events from now on and is
// closed at its end. The function that it returns ends that earlier.
func (c *Container) Events() (<-chan Event, func(), error) {
	if c.Status() == specs.StateStopped {
		return nil, nil, ErrNotRunning
	}
	conn, _, err := c.dial(controlRequest{Op: controlEvents})
	if err != nil {
		return nil, nil, err
	}
	events := make(chan Event)
	done := make(chan struct{})
	go func() {
		defer close(events)
		for {
			var msg eventMessage
			if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &msg); err != nil {
				return
			}
			select {
			case events <- msg.Event:
			case <-done:
				return
			}
		}
	}()
	return events, func() { close(done); _ = conn.Close() }, nil
}

// eventMessage follows the reply to controlEvents, any number of times.
type eventMessage struct {
	Event Event `json:"event"`
}
