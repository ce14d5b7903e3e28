package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
)

var updateCommand = &cli.Command{
	Name:      "update",
	Usage:     "change limits of a container",
	ArgsUsage: "ID",
	Description: `With --resources the limits are read from a JSON file of the form of
linux.resources, or - for standard input, and the other flags do not count. What
is left out, or zero, stays as it is.

The limits hold in the VM and on the host. The VM's memory grows with the memory
limit and does not shrink again; the number of its processors stays.`,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "read the limits from `file`, - for standard input"},
		&cli.IntFlag{Name: "blkio-weight", Usage: "block I/O `weight`, 10 to 1000"},
		&cli.StringFlag{Name: "cpu-period", Usage: "period of the CPU quota, in `microseconds`"},
		&cli.StringFlag{Name: "cpu-quota", Usage: "CPU time in a period, in `microseconds`"},
		&cli.StringFlag{Name: "cpu-burst", Usage: "CPU time beyond the quota that may be saved up, in `microseconds`"},
		&cli.StringFlag{Name: "cpu-share", Usage: "CPU `weight`, 2 to 262144"},
		&cli.StringFlag{Name: "cpu-rt-period", Usage: "period of the realtime CPU quota, in `microseconds`; on the host only"},
		&cli.StringFlag{Name: "cpu-rt-runtime", Usage: "realtime CPU time in a period, in `microseconds`; on the host only"},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "`list` of the host's processors to run on, such as 0-3,6"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "`list` of the host's memory nodes to use"},
		&cli.StringFlag{Name: "cpu-idle", Usage: "`1|0`: 1 for idle scheduling, 0 for normal"},
		&cli.StringFlag{Name: "kernel-memory", Hidden: true, Usage: "accepted and ignored, as by runc"},
		&cli.StringFlag{Name: "kernel-memory-tcp", Hidden: true, Usage: "accepted and ignored, as by runc"},
		&cli.StringFlag{Name: "memory", Usage: "memory limit in `bytes`, or with a unit: k, m, g"},
		&cli.StringFlag{Name: "memory-reservation", Usage: "memory reservation in `bytes`, likewise"},
		&cli.StringFlag{Name: "memory-swap", Usage: "limit of memory and swap together in `bytes`, -1 for none"},
		&cli.IntFlag{Name: "pids-limit", Usage: "`number` of processes at most, -1 for no limit"},
		&cli.StringFlag{Name: "l3-cache-schema", Usage: "`schema`: refused, a VM's cache allocation cannot be set"},
		&cli.StringFlag{Name: "mem-bw-schema", Usage: "`schema`: refused, a VM's cache allocation cannot be set"},
	},
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		resources, err := updatedResources(c)
		if err != nil {
			return about(c, ctr.ID, err)
		}
		return about(c, ctr.ID, ctr.Update(resources))
	},
}

// updatedResources are the limits of --resources or of the single flags.
func updatedResources(c *cli.Context) (*specs.LinuxResources, error) {
	if c.String("l3-cache-schema") != "" || c.String("mem-bw-schema") != "" {
		return nil, errors.New("a VM's cache allocation cannot be set")
	}
	if path := c.String("resources"); path != "" {
		return readResources(path)
	}
	r := &specs.LinuxResources{Memory: new(specs.LinuxMemory), CPU: new(specs.LinuxCPU), Pids: new(specs.LinuxPids), BlockIO: new(specs.LinuxBlockIO)}
	r.CPU.Cpus, r.CPU.Mems = c.String("cpuset-cpus"), c.String("cpuset-mems")
	if weight := c.Int("blkio-weight"); weight != 0 {
		if weight < 10 || weight > 1000 {
			return nil, fmt.Errorf("invalid value for blkio-weight: %d is not in 10 to 1000", weight)
		}
		w := uint16(weight)
		r.BlockIO.Weight = &w
	}
	if limit := int64(c.Int("pids-limit")); limit != 0 {
		r.Pids.Limit = &limit
	}
	return r, errors.Join(
		parseFlag(c, "cpu-period", &r.CPU.Period, parseUint),
		parseFlag(c, "cpu-quota", &r.CPU.Quota, parseInt),
		parseFlag(c, "cpu-burst", &r.CPU.Burst, parseUint),
		parseFlag(c, "cpu-share", &r.CPU.Shares, parseUint),
		parseFlag(c, "cpu-rt-period", &r.CPU.RealtimePeriod, parseUint),
		parseFlag(c, "cpu-rt-runtime", &r.CPU.RealtimeRuntime, parseInt),
		parseFlag(c, "cpu-idle", &r.CPU.Idle, parseInt),
		parseFlag(c, "memory", &r.Memory.Limit, parseBytes),
		parseFlag(c, "memory-reservation", &r.Memory.Reservation, parseBytes),
		parseFlag(c, "memory-swap", &r.Memory.Swap, parseBytes),
	)
}

func readResources(path string) (*specs.LinuxResources, error) {
	raw, err := os.ReadFile(path)
	if path == "-" {
		raw, err = io.ReadAll(os.Stdin)
	}
	if err != nil {
		return nil, err
	}
	r := new(specs.LinuxResources)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("--resources %s: %w", path, err)
	}
	return r, nil
}

// parseFlag sets a member from a flag that was given.
func parseFlag[T any](c *cli.Context, name string, to **T, parse func(string) (T, error)) error {
	text := c.String(name)
	if text == "" {
		return nil
	}
	v, err := parse(text)
	if err != nil {
		return fmt.Errorf("invalid value for %s: %w", name, err)
	}
	*to = &v
	return nil
}

func parseUint(text string) (uint64, error) { return strconv.ParseUint(text, 10, 64) }
func parseInt(text string) (int64, error)   { return strconv.ParseInt(text, 10, 64) }

// parseBytes takes a number of bytes, with a unit if need be (10m, 1.5G, 64KiB),
// or -1 for no limit.
func parseBytes(text string) (int64, error) {
	if text == "-1" {
		return -1, nil
	}
	number := strings.TrimRight(strings.ToLower(strings.TrimSpace(text)), "bikmgtp ")
	unit := strings.TrimSpace(strings.ToLower(strings.TrimSpace(text))[len(number):])
	shift, known := map[string]int{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30,
		"t": 40, "tb": 40, "tib": 40, "p": 50, "pb": 50, "pib": 50,
	}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n < 0 || n*math.Exp2(float64(shift)) >= math.MaxInt64 {
		return 0, fmt.Errorf("invalid size: %q", text)
	}
	return int64(n * math.Exp2(float64(shift))), nil
}
