// Command bench times boxlite beside runc and crun on one machine, in one run: for each measurement the runtimes take
// turns, so that what else the machine does meets all of them alike. It prints a table of medians and can write every
// single sample as JSON. It needs root, and leaves nothing behind.
//
//	go run ./bench -boxlite bin/boxlite [-quick] [-dind | -pods | -programs] [-json FILE]
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
	boxlite, load, bare string
	quick, dind         bool
	pods, programs      bool
	json, plot          string
}

func main() {
	var o options
	flag.StringVar(&o.boxlite, "boxlite", "bin/boxlite", "boxlite to measure")
	flag.StringVar(&o.load, "load", "bin/benchload", "program of bench/load")
	flag.StringVar(&o.bare, "bare", "bin/benchload.cpio", "initramfs of that program")
	flag.BoolVar(&o.quick, "quick", false, "few repetitions: a look, not a result")
	flag.BoolVar(&o.dind, "dind", false, "measure Docker in Docker, and nothing else")
	flag.BoolVar(&o.pods, "pods", false, "measure pods, and nothing else")
	flag.BoolVar(&o.programs, "programs", false, "measure the programs of images/programs, and nothing else")
	flag.StringVar(&o.json, "json", "", "write all samples to this file")
	flag.StringVar(&o.plot, "plot", "", "draw the start times into this SVG file")
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
	began := time.Now()
	h, err := newHost(work, o)
	if err != nil {
		return err
	}
	r := result{Date: began.UTC().Format(time.RFC3339), Machine: describeMachine(h)}
	fmt.Println(r.Machine)
	n := thorough
	if o.quick {
		n = quick
	}
	measures := []func(*host, repetitions, *result) error{starts, floors, atOnce, idleMemory, streams, burst, members, growth}
	judge := targets
	if o.dind {
		measures = []func(*host, repetitions, *result) error{dind, dindFiles}
		judge = dindTargets
	}
	if o.pods {
		measures = []func(*host, repetitions, *result) error{members, pods}
		judge = podTargets
	}
	if o.programs {
		measures = []func(*host, repetitions, *result) error{runPrograms}
		judge = programTargets
	}
	for _, measure := range measures {
		if err := measure(h, n, &r); err != nil {
			return err
		}
	}
	r.Targets = judge(&r)
	fmt.Printf("\n%s\nmeasured in %.0f s\n", r.table(), time.Since(began).Seconds())
	if o.plot != "" {
		if err := r.draw(o.plot); err != nil {
			return err
		}
	}
	if o.json == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(raw, '\n'), 0o644)
}

// repetitions are how often each kind is sampled, after one that does not count, and how much of what has no repetitions.
type repetitions struct {
	hand, docker, exec, floor, atOnce, memory, streams, dind, dindFiles, programs int

	unmeasured int // rounds of streams before those that count: the first fills the host's page cache

	smallFiles int // at most what a bare virtiofsd can keep open, which may have 20,000 descriptors

	scale  int           // of the programs' work
	many   int           // containers that start at once
	growth []int         // numbers of containers at which the last one is looked at, ascending,
	last   int           // and how often that one is started
	pods   int           // on the machine at once
	idle   time.Duration // for which their use of processors is measured
	burst  time.Duration // from the end of a burst to the look at what is left of it
}

var (
	thorough = repetitions{hand: 15, docker: 8, exec: 20, floor: 12, atOnce: 3, memory: 3, streams: 2, unmeasured: 1, dind: 3, dindFiles: 1, programs: 2, scale: 2, smallFiles: 15000, many: 20, growth: []int{1, 10, 50, 100}, last: 11, pods: 110, idle: time.Minute, burst: time.Minute}
	quick    = repetitions{hand: 2, docker: 1, exec: 3, floor: 3, atOnce: 1, memory: 1, streams: 1, dind: 1, dindFiles: 1, programs: 1, scale: 1, smallFiles: 500, many: 3, growth: []int{1, 5}, last: 1, pods: 3, idle: 5 * time.Second, burst: 3 * time.Second}
)
