// Command bench times boxlite beside runc and crun on one machine, in one run: for each measurement the runtimes take
// turns, so that what else the machine does meets all of them alike. It prints a table of medians and can write every
// single sample as JSON. It needs root, and leaves nothing behind.
//
//	go run ./bench -boxlite bin/boxlite [-quick] [-json FILE]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideVar holds the work directory in the process that measures. That process is PID 1 of namespaces of its own and
// takes dockerd and all containers with it when it ends.
const insideVar = "BOXLITE_BENCH_WORK"

type options struct {
	boxlite string
	quick   bool
	json    string
}

func main() {
	var o options
	flag.StringVar(&o.boxlite, "boxlite", "bin/boxlite", "boxlite to measure")
	flag.BoolVar(&o.quick, "quick", false, "few repetitions: a look, not a result")
	flag.StringVar(&o.json, "json", "", "write all samples to this file")
	flag.Parse()
	run := outside
	if work := os.Getenv(insideVar); work != "" {
		run = func(o options) error { return inside(o, work) }
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside makes the work directory, runs the inside and removes what it left on disk and of cgroups.
func outside(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and network namespaces need root")
	}
	work, err := os.MkdirTemp("/var/tmp", "boxlite-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work), removeCgroups(filepath.Base(work))) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"="+work)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C comes to this process alone
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig follows the thread
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case s := <-interrupted:
		_ = cmd.Process.Kill() // it may have ended meanwhile
		<-ended
		return fmt.Errorf("ended by %v", s)
	case err := <-ended:
		return err
	}
}

// inside measures.
func inside(o options, work string) error {
	h, err := newHost(work, o.boxlite)
	if err != nil {
		return err
	}
	began := time.Now()
	r := result{Date: began.UTC().Format(time.RFC3339), Machine: describeMachine(h)}
	fmt.Println(r.Machine)
	repeat := repetitions{hand: 30, docker: 15, exec: 30, memory: 3}
	if o.quick {
		repeat = repetitions{hand: 3, docker: 2, exec: 3, memory: 1}
	}
	if err := measure(h, repeat, &r); err != nil {
		return err
	}
	fmt.Printf("\n%s\nmeasured in %.0f s\n", r.table(), time.Since(began).Seconds())
	if o.json == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(raw, '\n'), 0o644)
}
