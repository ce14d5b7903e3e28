package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// standby is boxlite with a VM that was started before the container: by boxlite standby, which goes on for as long as the
// bench. It has templates of its own, so that the VM is nobody else's.
const standby = "boxlite-standby"

// addStandby adds that subject.
func (h *host) addStandby(boxlite string) error {
	flags := []string{"--template-dir", filepath.Join(h.work, "standby")}
	cmd := exec.Command(boxlite, append(flags, "standby")...)
	cmd.Stderr = os.Stderr
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ready := make(chan string)
	go func() {
		defer close(ready)
		for in := bufio.NewScanner(lines); in.Scan(); {
			ready <- in.Text()
		}
	}()
	settle := func() error {
		select {
		case _, ok := <-ready:
			if !ok {
				return fmt.Errorf("boxlite standby ended: %w", cmd.Wait())
			}
			return nil
		case <-time.After(time.Minute):
			return errors.New("no standby VM got ready: the last one was not taken")
		}
	}
	h.subjects = append(h.subjects, subject{standby, boxlite, flags, settle})
	return settle()
}
