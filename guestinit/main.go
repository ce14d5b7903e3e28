// Command guestinit is PID 1 of the guest and the only program of its initramfs.
//
// It owns everything inside the VM that is not the container's own: the boot,
// the control port, the building of the container from its guest spec, the
// processes in it, their stdio, the guest's network and the relay for Docker's
// resolver. It knows nothing of the host beyond package guestproto, and expects
// anything of the container: whatever a container does to itself, guestinit
// goes on answering.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/kmod"
	"github.com/boxlite-oci/boxlite/internal/tsc"
)

// The main goroutine stays on the main thread, so that the threads which
// onThread throws away after they have joined a container's namespaces are
// never the one whose end would be the end of PID 1.
func init() { runtime.LockOSThread() }

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guestinit: runs as PID 1 of a boxlite guest only")
		os.Exit(2)
	}
	// One processor at a time for Go. With two, an idle processor looks for goroutines of the busy one and
	// interrupts it. Where many emulated VMs start on few host processors, that makes all of them a fifth slower.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(400) // the heap is a few MiB; under TCG a collection costs milliseconds
	booted, _ := tsc.Now()  // who asks for the clock's rate hears the error
	filter, err := os.ReadFile(guestproto.DeviceFilterFile)
	check("read the device filter", err)
	check("load modules", kmod.LoadAll(guestproto.ModulesDir))
	check("switch to a root of our own", switchRoot())
	check("mount", mountSystem())
	adoptConsole()
	tasks, err := tasksForMemory()
	check("read the limit of tasks", err)
	check("set kernel parameters", setKernelParameters())
	check("set resource limits", setResourceLimits())
	children := newReaper()
	go children.run()
	var ground *groundwork
	prepareGround := func() (err error) {
		ground, err = layGroundwork(children, filter)
		return err
	}
	prepared := later(func() error { return setupCgroups(tasks) }, prepareGround, loopbackUp, makeLoopNodes)
	device, err := findControlPort()
	check("find control port", err)
	check("prepare for a container", prepared())
	network, err := newNetworkState()
	check("prepare for a network", err)
	server := newServer(children, network, ground, filter)
	server.booted = booted
	// Last: this tells the monitor that the guest is ready, to be saved as a
	// template or to be spoken to.
	port, err := openControlPort(device)
	check("open control port", err)
	check("serve", server.serve(port))
}

// check ends the guest on a failed boot step: the kernel panics when PID 1
// ends, and the monitor shows the console log.
func check(step string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "guestinit: %s: %v\n", step, err)
		os.Exit(1)
	}
}

// later runs steps, one after the other, beside what follows. The function that
// it returns waits for their end.
func later(steps ...func() error) func() error {
	done := make(chan error, 1)
	go func() {
		for _, step := range steps {
			if err := step(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return sync.OnceValue(func() error { return <-done })
}

// debugLog is switched on by hello.
var debugLog bool

// logf writes to the VM's console, which the monitor keeps as a log.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "guestinit: "+format+"\n", args...)
}

// debugf is logf for steps that only matter to whoever debugs guestinit.
func debugf(format string, args ...any) {
	if debugLog {
		logf(format, args...)
	}
}
