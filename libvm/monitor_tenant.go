package libvm

import (
	"errors"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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
	frozen    gate // before execs: the container stands still, and the VM does not
	awaited   gate // before execs, until their end: whose VM ends is told so within
	oom       oomCount
	needMiB   int // of memory that the VM has for it; the pod's lock guards it

	shown   shownFiles    // the monitor's lock guards it
	givenUp chan struct{} // of a member: closed when SIGKILL has not ended it
}

func newTenant(m *monitor) *tenant {
	return &tenant{monitor: m, ended: make(chan struct{}), killed: make(chan struct{}), givenUp: make(chan struct{})}
}

// isOwn says that the container is the monitor's own, whose end is the VM's.
func (m *tenant) isOwn() bool { return m == m.own }

// inPod says that there are others in the VM.
func (m *tenant) inPod() bool { return !m.isOwn() || len(m.members()) > 0 }

// fail ends the container, and with the monitor's own the VM.
func (m *tenant) fail(reason error) {
	if m.isOwn() {
		m.monitor.fail(reason)
		return
	}
	m.log.Warn("ending a member", "because", reason)
	if err := m.signal(int(unix.SIGKILL), false); err != nil {
		m.log.Debug("kill a member", "error", err) // it has usually ended already
	}
}

// freezePatience is more than the guest waits for the container to stand still.
const freezePatience = 10 * time.Second

// freeze has the container stand still while the VM goes on. Execs that are under way
// come first.
func (m *tenant) freeze() error {
	m.frozen.shut(pausePatience)
	err := m.guest.call(guestproto.OpFreeze, guestproto.FreezeRequest{Frozen: true}, nil, within(freezePatience))
	if err != nil {
		err = errors.Join(err, m.thaw())
	}
	return err
}

func (m *tenant) thaw() error {
	err := m.guest.call(guestproto.OpFreeze, guestproto.FreezeRequest{}, nil, within(freezePatience))
	if err == nil {
		m.frozen.open(func() {})
	}
	return err
}
