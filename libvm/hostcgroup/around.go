package hostcgroup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// MemoryLimitAround is the limit of memory, in bytes, of the cgroup around c. It is zero
// where there is none, and what version 1 says of no limit is a limit beyond all memory.
func (c *Cgroup) MemoryLimitAround() (int64, error) {
	if c.MemoryDir() == "" {
		return 0, nil
	}
	for _, name := range []string{"memory.max", "memory.limit_in_bytes"} { // version 2, version 1
		text, err := os.ReadFile(filepath.Join(filepath.Dir(c.MemoryDir()), name))
		switch limit := strings.TrimSpace(string(text)); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return 0, err
		case limit == "max":
			return 0, nil
		default:
			return strconv.ParseInt(limit, 10, 64)
		}
	}
	return 0, nil
}

// ProcessorsAround is how many processors the cgroup around c may use, rounded up. It is
// zero where there is no limit.
func (c *Cgroup) ProcessorsAround() (int, error) {
	paths := c.manager.GetPaths()
	dir := cmp.Or(paths["cpu"], paths[""])
	if dir == "" {
		return 0, nil
	}
	var words []string
	for _, name := range []string{"cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"} { // version 2, version 1
		text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		words = append(words, strings.Fields(string(text))...)
	}
	var quota, period int
	if n, _ := fmt.Sscan(strings.Join(words, " "), &quota, &period); n < 2 || quota <= 0 || period <= 0 { // "max", -1
		return 0, nil
	}
	return (quota + period - 1) / period, nil
}
