// Command conformance runs the OCI runtime-tools validation suite against boxlite and against runc, and keeps the table of
// its programs in docs/conformance.md. It needs root and cgroup v1; README.md beside it explains the rest.
//
//	go run ./conformance                           # all programs, both runtimes, and write the table
//	go run ./conformance -check                    # boxlite only: does every program still do what the table says?
//	go run ./conformance -v -run '^kill$'          # one program, with its output; writes nothing
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

type options struct {
	boxlite string
	runc    string
	table   string
	run     string
	check   bool
	verbose bool
	jobs    int
	timeout time.Duration
}

func main() {
	if len(os.Args) > 1 && os.Args[0] == stageName {
		if err := stage(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			os.Exit(exitIsolation)
		}
		return
	}
	var o options
	flag.StringVar(&o.boxlite, "boxlite", "bin/boxlite", "boxlite to test")
	flag.StringVar(&o.runc, "runc", "runc", "runc to test beside it")
	flag.StringVar(&o.table, "table", "docs/conformance.md", "document with the table")
	flag.StringVar(&o.run, "run", "", "run only the programs whose names match, and write no table")
	flag.BoolVar(&o.check, "check", false, "run boxlite only and fail if a program does worse than the table says")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs write")
	flag.IntVar(&o.jobs, "j", 1, "programs at the same time")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "the longest that one program may take")
	flag.Parse()
	if err := conform(o); err != nil {
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
	if os.Geteuid() != 0 {
		return errors.New("containers need root")
	}
	runtimes, err := runtimesOf(o)
	if err != nil {
		return err
	}
	suite, err := buildSuite()
	if err != nil {
		return err
	}
	filter, err := regexp.Compile(o.run)
	if err != nil {
		return err
	}
	var programs []string
	for _, program := range suite.programs {
		if filter.MatchString(program) {
			programs = append(programs, program)
		}
	}
	started := time.Now()
	table := runAll(o, suite, programs, runtimes)
	fmt.Printf("%d programs in %s\n", len(programs), time.Since(started).Round(time.Second))
	for _, runtime := range runtimes {
		fmt.Println(table.summary(runtime.name))
	}
	switch {
	case o.check:
		return check(o.table, table)
	case o.run == "":
		return write(o.table, table)
	}
	return nil
}

func runtimesOf(o options) ([]ociRuntime, error) {
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
					output, err := isolated(suite, program, runtime, o.timeout)
					row[runtime.name] = judge(output, err)
					mu.Lock()
					report(o, program, runtime.name, row[runtime.name], time.Since(started), output)
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
