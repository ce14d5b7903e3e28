package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// stats answers with the usage that the container's cgroup counts.
func (c *container) stats(*struct{}) (any, error) {
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
