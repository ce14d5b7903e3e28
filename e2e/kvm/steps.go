// Package kvm tests boxlite under KVM, on any machine; kvm_test.go says how. This file is what the test and the init of
// its virtual machine (outerinit) agree on.
package kvm

import "time"

// Tags of the virtio-fs shares, each mounted below / at its name.
const (
	UsrTag  = "usr"  // the machine's /usr, read-only: QEMU, virtiofsd, a shell and its tools
	BinTag  = "bin"  // boxlite with its parts beside it, read-only, mounted at BoxliteDir
	WorkTag = "work" // StepsFile, bundles, and what init writes
)

// BoxliteDir is where the VM has boxlite.
const BoxliteDir = "/boxlite"

// Files in the share WorkTag.
const (
	StepsFile   = "steps.json"   // a []Step
	ResultsFile = "results.json" // a []Result, written anew after each step
	LinkerCache = "ld.so.cache"  // the machine's /etc/ld.so.cache
)

// A Step is a shell script that init runs to its end, one after the other, whatever became of the one before.
type Step struct {
	Name   string
	Script string
	Stdin  string
}

// A Result is how a step ended.
type Result struct {
	Name   string
	Code   int // exit status; -1 if the shell was killed for exceeding StepLimit
	Stdout string
	Stderr string
	Took   time.Duration
}

// StepLimit is how long a step may take before init kills its shell: longer than boxlite waits for a guest under KVM, whose
// error then shows.
const StepLimit = 130 * time.Second

// Stalled says that a step took longer than any that goes on, on a machine half as fast as the others too: there the longest
// takes 16 s. A guest that boxlite gives up takes longer. The steps after it are not run.
func (r Result) Stalled() bool { return r.Took > 40*time.Second }
