package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// standby is boxlite with VMs that were started before the container, by boxlite standby. They have templates of their own,
// so that they are nobody else's.
const standby = "boxlite-standby"

// startStandby starts that command, waits until as many VMs stand by and gives the subject that takes all of
// them each time: it is settled when as many have come in their place. stop ends the command.
func (h *host) startStandby(boxlite string, vms int) (_ subject, stop func() error, err error) {
	flags := []string{"--template-dir", filepath.Join(h.work, fmt.Sprintf("standby-%d", vms))}
	cmd := exec.Command(boxlite, append(flags[:2:2], "standby", "--vms", strconv.Itoa(vms))...)
	cmd.Stderr = os.Stderr
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return subject{}, nil, err
	}
	if err := cmd.Start(); err != nil {
		return subject{}, nil, err
	}
	ready := make(chan string, vms)
	go func() {
		defer close(ready)
		for in := bufio.NewScanner(lines); in.Scan(); {
			ready <- in.Text()
		}
	}()
	s := subject{name: standby, bin: boxlite, flags: flags, settle: func() error {
		for range vms {
			select {
			case _, ok := <-ready:
				if !ok {
					return errors.New("boxlite standby has ended")
				}
			case <-time.After(time.Minute):
				return errors.New("no standby VM got ready: the last one was not taken")
			}
		}
		return nil
	}}
	stop = func() error {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			return err
		}
		for range ready { // to the end of its output, which Wait would cut off
		}
		return cmd.Wait()
	}
	if err := s.settle(); err != nil {
		return subject{}, nil, errors.Join(err, stop())
	}
	return s, stop, nil
}
