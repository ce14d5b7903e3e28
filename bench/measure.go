package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// repetitions are how often each kind is sampled, after one that does not count.
type repetitions struct{ hand, docker, exec, memory int }

// measure takes all samples. Each measurement is a row of the result.
func measure(h *host, n repetitions, r *result) error {
	if err := byHand(h, n.hand, r); err != nil {
		return err
	}
	err := r.alternate("docker run --rm true", n.docker, h.docker(), func(s subject, _ string) error {
		_, err := docker("run", "--rm", "--runtime", s.name, "busybox", "true")
		return err
	})
	if err != nil {
		return err
	}
	if err := inContainers(h, n.exec, r); err != nil {
		return err
	}
	return idleMemory(h, n.memory, r)
}

// byHand measures the runtimes' own command lines.
func byHand(h *host, n int, r *result) error {
	bundle, err := h.bundle("true", "true")
	if err != nil {
		return err
	}
	err = r.alternate("run true", n, h.subjects, func(s subject, id string) error {
		_, err := output(s.bin, "run", "--bundle", bundle, id)
		return err
	})
	if err != nil {
		return err
	}
	// The steps of a life, each in turn. The containers' stdio is /dev/null: nobody waits for its end.
	steps := []struct {
		name string
		args []string
	}{
		{"create", []string{"create", "--bundle", bundle}},
		{"start", []string{"start"}},
		{"delete --force", []string{"delete", "--force"}},
	}
	for i := range n + 1 {
		for _, s := range h.subjects {
			id := fmt.Sprintf("bench-steps-%s-%d", s.name, i)
			for _, step := range steps {
				began := time.Now()
				if err := detached(s.bin, append(step.args, id)...); err != nil {
					return err
				}
				if i > 0 {
					r.add(step.name, s.name, time.Since(began))
				}
			}
		}
	}
	return nil
}

// inContainers measures docker exec in a container of each runtime.
func inContainers(h *host, n int, r *result) error {
	for _, s := range h.docker() {
		if _, err := docker("run", "-d", "--name", "exec-"+s.name, "--runtime", s.name, "busybox", "sleep", "3600"); err != nil {
			return err
		}
	}
	err := r.alternate("docker exec true", n, h.docker(), func(s subject, _ string) error {
		_, err := docker("exec", "exec-"+s.name, "true")
		return err
	})
	for _, s := range h.docker() {
		if _, err := docker("rm", "-f", "exec-"+s.name); err != nil {
			return err
		}
	}
	return err
}

// idleMemory starts containers that sleep and looks at their processes once they have settled.
func idleMemory(h *host, n int, r *result) error {
	for _, s := range h.docker() {
		var ids []string
		for range n {
			id, err := docker("run", "-d", "--runtime", s.name, "busybox", "sleep", "3600")
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		time.Sleep(3 * time.Second) // the guest gives free pages back within two
		for _, id := range ids {
			if err := sampleMemory(s, id, r); err != nil {
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

func sampleMemory(s subject, id string, r *result) error {
	top, err := docker("top", id, "-o", "pid")
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(top)[1:] { // below the heading
		m, err := readRollup(pid)
		if err != nil {
			return err
		}
		// Not the kernel's name for it, which for boxlite's monitor is "exe".
		args, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil {
			return err
		}
		program, _, _ := strings.Cut(string(args), "\x00")
		m.Runtime, m.Container, m.Program = s.name, id[:12], filepath.Base(program)
		r.Memory = append(r.Memory, m)
	}
	return nil
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

// detached runs a command with /dev/null as its stdio; its complaints go to a file, which nobody reads to its end.
func detached(name string, args ...string) error {
	stderr, err := os.CreateTemp("", "bench-stderr-")
	if err != nil {
		return err
	}
	defer stderr.Close()
	defer os.Remove(stderr.Name())
	cmd := exec.Command(name, args...)
	cmd.Stderr = stderr
	if err := cmd.Run(); err != nil {
		text, _ := io.ReadAll(io.NewSectionReader(stderr, 0, 4096)) // beside the error that matters
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return nil
}
