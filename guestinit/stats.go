package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"boxlite/internal/guestproto"

	"golang.org/x/sys/unix"
)

// stats answers with the usage that the container's cgroup counts.
func (s *server) stats(*struct{}) (any, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, err
	}
	return c.cgroup.stats(), nil
}

// stats reads the counters; a file that the kernel does not have counts nothing.
func (g *cgroup) stats() *guestproto.StatsReply {
	cpu, memory, events := g.table("cpu.stat"), g.table("memory.stat"), g.table("memory.events")
	return &guestproto.StatsReply{
		CPU: guestproto.CPUStats{
			UsageMicros: cpu["usage_usec"], UserMicros: cpu["user_usec"], SystemMicros: cpu["system_usec"],
			Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledMicros: cpu["throttled_usec"],
		},
		Memory: guestproto.MemoryStats{
			Usage: g.number("memory.current"), Peak: g.number("memory.peak"), Limit: g.number("memory.max"), AtLimit: events["max"],
			Swap: g.number("memory.swap.current"), SwapLimit: g.number("memory.swap.max"), Kernel: memory["kernel"], Detail: memory,
		},
		Pids: guestproto.PidsStats{Current: g.number("pids.current"), Limit: g.number("pids.max")},
	}
}

// number reads a file that holds one number, or max for none.
func (g *cgroup) number(file string) uint64 {
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0
	}
	if strings.TrimSpace(string(text)) == "max" {
		return guestproto.NoLimit
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// table reads a file of lines with a name and a number.
func (g *cgroup) table(file string) map[string]uint64 {
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return nil
	}
	return parseTable(string(text))
}

func parseTable(text string) map[string]uint64 {
	table := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			table[name] = n
		}
	}
	return table
}

// awaitOOM answers once the kernel has killed more processes of the container
// for lack of memory than the request has seen.
func (s *server) awaitOOM(req *guestproto.OOMRequest) (any, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	defer changes.Close()
	// The kernel's cgroup v2 says: such a file is modified when a value changes.
	path := filepath.Join(c.cgroup.dir, "memory.events")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	for {
		if kills := c.cgroup.table("memory.events")["oom_kill"]; kills > req.Seen {
			return &guestproto.OOMReply{Kills: kills}, nil
		}
		if _, err := changes.Read(make([]byte, 4096)); err != nil {
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
	}
}
