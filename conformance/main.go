// Command conformance runs the OCI runtime-tools validation suite against boxlite and against runc, and keeps the table of
// its programs in docs/conformance.md. It needs root, runc and, for the programs about cgroups, a host with version 1.
//
//	go run ./conformance                     # all programs, both runtimes, and write the table
//	go run ./conformance -check              # boxlite only: do the programs that the table calls ok still end so?
//	go run ./conformance -v -run '^kill$'    # one program, with its output; writes nothing
//	go run ./conformance -cri                # critest through a containerd of its own, both runtimes, and write its table
//	go run ./conformance -cri -run DNS       # some of critest's specs; writes nothing
//	go run ./conformance -runc-tests         # runc's own tests, both runtimes, and write their table; -run chooses files
//	go run ./conformance -cri-tools          # build crictl and critest, and print the directory that has them
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/boxlite-oci/boxlite/internal/isolate"
)

type options struct {
	boxlite string
	runc    string
	table   string
	run     string
	check   bool
	cri     bool
	tests   bool
	verbose bool
	jobs    int
	timeout time.Duration
}

func main() {
	switch os.Args[0] {
	case isolate.StageName:
		isolate.Stage()
	case criStageName:
		fmt.Fprintln(os.Stderr, "conformance:", criStage(os.Args[1:]))
		os.Exit(1)
	}
	var o options
	flag.StringVar(&o.boxlite, "boxlite", "bin/boxlite", "boxlite to test")
	flag.StringVar(&o.runc, "runc", "runc", "runc to test beside it")
	flag.StringVar(&o.table, "table", "docs/conformance.md", "document with the table")
	flag.StringVar(&o.run, "run", "", "run only the programs whose names match, and write no table")
	flag.BoolVar(&o.check, "check", false, "run with boxlite what the table calls ok, and fail if it is not")
	flag.BoolVar(&o.cri, "cri", false, "run critest in the place of the OCI suite")
	flag.BoolVar(&o.tests, "runc-tests", false, "run runc's own tests in the place of the OCI suite")
	tools := flag.Bool("cri-tools", false, "build crictl and critest, print their directory, and run nothing")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs write")
	flag.IntVar(&o.jobs, "j", 1, "programs at the same time")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "the longest that one program may take")
	flag.Parse()
	run := conform
	switch {
	case *tools:
		run = printCRITools
	case o.cri:
		run = conformCRI
	case o.tests:
		run = conformRunc
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// A runtime under test.
type ociRuntime struct {
	name string
	path string // absolute
}

func conform(o options) error {
	runtimes, err := runtimesOf(o)
	if err != nil {
		return err
	}
	suite, err := buildSuite()
	if err != nil {
		return err
	}
	programs, err := choose(o, suite.programs)
	if err != nil {
		return err
	}
	started := time.Now()
	table := runAll(o, suite, programs, runtimes)
	if again := table.failing("boxlite"); o.check && len(again) > 0 {
		// The suite waits by the clock, and a busy machine can make any of its programs fail once.
		fmt.Println("once more, one at a time:", strings.Join(again, " "))
		o.jobs = 1
		maps.Copy(table, runAll(o, suite, again, runtimes))
	}
	fmt.Printf("%d programs in %s\n", len(programs), time.Since(started).Round(time.Second))
	for _, runtime := range runtimes {
		fmt.Println(table.summary(runtime.name))
	}
	switch {
	case o.check:
		return table.check()
	case o.run == "":
		return write(o.table, table)
	}
	return nil
}

// isolated runs one program, in the machine's network as the suite reads its interfaces, or in a new one if the job says so.
// It returns what the program wrote.
func isolated(j isolate.Job) (stdout, stderr []byte, err error) {
	var out, errs bytes.Buffer
	j.Stdout, j.Stderr = &out, &errs
	err = j.Run()
	return out.Bytes(), errs.Bytes(), err
}

// choose returns the programs to run.
func choose(o options, all []string) ([]string, error) {
	filter, err := regexp.Compile(o.run)
	if err != nil {
		return nil, err
	}
	programs := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !filter.MatchString(name) })
	if !o.check {
		return programs, nil
	}
	expected, err := readTable(o.table)
	if err != nil {
		return nil, err
	}
	hierarchies, err := isolate.CgroupMounts()
	if err != nil {
		return nil, err
	}
	version1 := slices.ContainsFunc(hierarchies, func(h isolate.Hierarchy) bool { return h.FSType == "cgroup" })
	var chosen []string
	for _, program := range programs {
		cell, ok := expected[program]
		_, judgedByTime := unsteady[program]
		switch {
		case !ok:
			return nil, fmt.Errorf("%s has no row for %s: make conformance", o.table, program)
		case !strings.HasPrefix(cell, "ok") || judgedByTime:
		case !version1 && needsCgroup1(program):
			fmt.Printf("%s: left out on a host without cgroup v1\n", program)
		default:
			chosen = append(chosen, program)
		}
	}
	return chosen, nil
}

// needsCgroup1 is true for the programs that look into the host's version 1 hierarchies.
func needsCgroup1(program string) bool {
	return strings.HasPrefix(program, "linux_cgroups_") || program == "delete_only_create_resources" || program == "delete_resources"
}

// runtimesOf returns what is tested, and fails where that cannot be.
func runtimesOf(o options) ([]ociRuntime, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("containers need root")
	}
	if _, err := regexp.Compile(o.run); err != nil {
		return nil, err
	}
	boxlite, err := filepath.Abs(o.boxlite)
	if err != nil {
		return nil, err
	}
	if o.check {
		return []ociRuntime{{"boxlite", boxlite}}, nil
	}
	runc, err := exec.LookPath(o.runc)
	if err != nil {
		return nil, err
	}
	return []ociRuntime{{"runc", runc}, {"boxlite", boxlite}}, nil
}

// runAll runs each program with each runtime, one after the other, and o.jobs programs at the same time.
func runAll(o options, suite *suite, programs []string, runtimes []ociRuntime) results {
	table := make(results, len(programs))
	queue := make(chan string)
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range max(1, o.jobs) {
		workers.Go(func() {
			for program := range queue {
				row := map[string]result{}
				for _, runtime := range runtimes {
					started := time.Now()
					path := filepath.Join(suite.dir, program)
					tap, errors, err := isolated(isolate.Job{Path: path, Args: []string{path}, Dir: suite.dir, Env: []string{"RUNTIME=" + runtime.path}, Timeout: o.timeout})
					row[runtime.name] = judge(tap, err)
					mu.Lock()
					report(o, program, runtime.name, row[runtime.name], time.Since(started), slices.Concat(tap, errors))
					mu.Unlock()
				}
				mu.Lock()
				table[program] = row
				mu.Unlock()
			}
		})
	}
	for _, program := range programs {
		queue <- program
	}
	close(queue)
	workers.Wait()
	return table
}

func report(o options, program, runtime string, r result, took time.Duration, output []byte) {
	fmt.Printf("%-34s %-8s %5.1fs  %s\n", program, runtime, took.Seconds(), r)
	if o.verbose {
		fmt.Printf("\t%s\n", strings.ReplaceAll(strings.TrimRight(string(output), "\n"), "\n", "\n\t"))
	} else {
		for _, failure := range r.failures {
			fmt.Printf("\t%s\n", failure)
		}
	}
}
