package libvm

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// tenant is a container that lives in the monitor's VM.
type tenant struct {
	*monitor
	guest *guest // whose requests are about this container

	stdio Stdio
	relay *relay
	ended chan struct{}        // closed when the container init has ended,
	end   guestproto.WaitReply // which happened like this
	// hooks says that the guest has hooks to run at the start, and state is what they
	// read.
	hooks bool
	state specs.State

	started  bool
	nextExec int
	// lingering are channels that end the outputs of detached execs whose process
	// has ended, the oldest first.
	lingering []chan struct{}
	killed    chan struct{} // closed when SIGKILL was asked for

	answering gate // before the control requests, those of exec apart
	oom       oomCount
}

func newTenant(m *monitor) *tenant {
	return &tenant{monitor: m, ended: make(chan struct{}), killed: make(chan struct{})}
}
