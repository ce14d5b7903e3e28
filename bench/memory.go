package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const mebibytes = "MiB"

// settle is how long a guest gets to give free pages back, which it does within two seconds.
const settle = 3 * time.Second

// idleMemory starts containers that sleep and looks at their processes once they have settled.
func idleMemory(h *host, n repetitions, r *result) error {
	for _, s := range h.docker() {
		var ids []string
		for range n.memory {
			id, err := docker("run", "-d", "--runtime", s.name, "busybox", "sleep", "3600")
			if err != nil {
				return err
			}
			ids = append(ids, id)
			if err := s.started(); err != nil {
				return err
			}
		}
		time.Sleep(settle)
		for _, id := range ids {
			if err := h.sampleMemory(s.name, id, r); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if _, err := docker("rm", "-f", id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *host) sampleMemory(runtime, id string, r *result) error {
	pids, err := h.pids(id)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		m, err := readRollup(pid)
		if err != nil {
			return err
		}
		program, err := programOf(pid)
		if err != nil {
			return err
		}
		m.Runtime, m.Container, m.Program = runtime, id, program
		r.Memory = append(r.Memory, m)
	}
	return nil
}

// programOf is the name of the file that a process runs: boxlite's monitor shows its container's command line.
func programOf(pid string) (string, error) {
	file, err := os.Readlink("/proc/" + pid + "/exe")
	return filepath.Base(file), err
}

// burst has a container take 200 MiB and give them back, and follows what that does to the host's memory for a minute.
func burst(h *host, n repetitions, r *result) error {
	const takenMiB = 200
	bundle, err := h.bundle("bench-burst", "/load", "burst", strconv.Itoa(takenMiB))
	if err != nil {
		return err
	}
	s := h.boxlite()
	cmd := exec.Command(s.bin, append(s.flags[:len(s.flags):len(s.flags)], "run", "--bundle", bundle, "bench-burst")...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_, _ = s.run("delete", "--force", "bench-burst") // with it the command ends, whatever it says
		_ = cmd.Wait()
	}()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return fmt.Errorf("burst: %w", err)
	}
	for _, step := range []struct {
		what  string
		after time.Duration
	}{{"taken", 0}, {"given back", n.burst}} {
		time.Sleep(step.after)
		pss, err := h.pss("bench-burst")
		if err != nil {
			return err
		}
		r.add(fmt.Sprintf("burst of %d MiB, %s", takenMiB, step.what), warm, mebibytes, pss)
		if step.after == 0 {
			if err := stdin.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// pids are the host's processes of a container: those in its cgroup, whether made by docker or by hand.
func (h *host) pids(id string) ([]string, error) {
	for _, hierarchy := range []string{"pids", "."} { // cgroup v1, v2
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", hierarchy, h.tag, id, "cgroup.procs"))
		if err == nil {
			return strings.Fields(string(text)), nil
		}
	}
	return nil, fmt.Errorf("no cgroup of container %s", id)
}

// pss is the sum over a container's processes, in MiB.
func (h *host) pss(id string) (sum float64, err error) {
	pids, err := h.pids(id)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		m, err := readRollup(pid)
		if err != nil {
			return 0, err
		}
		sum += float64(m.PSSKiB) / 1024
	}
	return sum, nil
}

// readRollup reads /proc/PID/smaps_rollup.
func readRollup(pid string) (m memorySample, err error) {
	raw, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		kib, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		switch fields[0] {
		case "Rss:":
			m.RSSKiB = kib
		case "Pss:":
			m.PSSKiB = kib
		}
	}
	return m, nil
}
