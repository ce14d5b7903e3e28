package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// starts measures how long containers take to start, by hand and through docker.
func starts(h *host, n repetitions, r *result) error {
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
	return inContainers(h, n.exec, r)
}

// byHand measures the runtimes' own command lines.
func byHand(h *host, n int, r *result) error {
	bundle, err := h.bundle("true", "true")
	if err != nil {
		return err
	}
	err = r.alternate("run true", n, h.subjects, func(s subject, id string) error {
		_, err := s.run("run", "--bundle", bundle, id)
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
			if s.name == "runsc" { // its delete waits until its sandbox is reaped, which PID 1 here does not do
				continue
			}
			id := fmt.Sprintf("bench-steps-%s-%d", s.name, i)
			for _, step := range steps {
				began := time.Now()
				if err := s.detached(append(step.args, id)...); err != nil {
					return err
				}
				if i > 0 {
					r.add(step.name, s.name, seconds, time.Since(began).Seconds())
				}
			}
			if err := s.started(); err != nil {
				return err
			}
		}
	}
	return nil
}

// inContainers measures docker exec in a container of each runtime. That of a VM that stood by is one like others by then.
func inContainers(h *host, n int, r *result) error {
	subjects := slices.DeleteFunc(h.docker(), func(s subject) bool { return s.name == standby })
	for _, s := range subjects {
		if _, err := docker("run", "-d", "--name", "exec-"+s.name, "--runtime", s.name, "busybox", "sleep", "3600"); err != nil {
			return err
		}
	}
	err := r.alternate("docker exec true", n, subjects, func(s subject, _ string) error {
		_, err := docker("exec", "exec-"+s.name, "true")
		return err
	})
	for _, s := range subjects {
		if _, err := docker("rm", "-f", "exec-"+s.name); err != nil {
			return err
		}
	}
	return err
}

// atOnce starts many containers of /bin/true in the same moment and waits for all; nobody but boxlite, from its template and
// with a VM that stands by for each.
func atOnce(h *host, n repetitions, r *result) error {
	var bundles []string
	for k := range n.many {
		bundle, err := h.bundle(fmt.Sprintf("atonce-%d", k), "true")
		if err != nil {
			return err
		}
		bundles = append(bundles, bundle)
	}
	prepared, stop, err := h.startStandby(h.boxlite().bin, n.many)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d x run true at once", n.many)
	err = r.alternate(what, n.atOnce, []subject{h.boxlite(), prepared}, func(s subject, id string) error {
		ended := make(chan error)
		for k, bundle := range bundles {
			go func() {
				_, err := s.run("run", "--bundle", bundle, fmt.Sprintf("%s-%d", id, k))
				ended <- err
			}()
		}
		var failed error
		for range bundles {
			if err := <-ended; err != nil {
				failed = err
			}
		}
		return failed
	})
	return errors.Join(err, stop())
}

// run runs the runtime's command line to its end.
func (s subject) run(args ...string) (string, error) {
	return output(s.bin, append(s.flags[:len(s.flags):len(s.flags)], args...)...)
}

// detached is run with /dev/null as the command's stdio; its complaints go to a file, which nobody reads to its end.
func (s subject) detached(args ...string) error {
	stderr, err := os.CreateTemp("", "bench-stderr-")
	if err != nil {
		return err
	}
	defer stderr.Close()
	defer os.Remove(stderr.Name())
	cmd := exec.Command(s.bin, append(s.flags[:len(s.flags):len(s.flags)], args...)...)
	cmd.Stderr = stderr
	if err := cmd.Run(); err != nil {
		text, _ := io.ReadAll(io.NewSectionReader(stderr, 0, 4096)) // beside the error that matters
		return fmt.Errorf("%s %s: %w: %s", s.bin, strings.Join(args, " "), err, text)
	}
	return nil
}
