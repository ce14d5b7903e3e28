package libvm

import (
	"errors"

	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// Sentinels of a container's life. Callers of runc match these texts
// (containerd: "does not exist", "not running"; podman: "not running"), so they
// are part of the command line's contract and pinned by tests.
var (
	ErrExist      = errors.New("container with given ID already exists")
	ErrNotExist   = errors.New("container does not exist")
	ErrNotRunning = errors.New("container not running")
	ErrRunning    = errors.New("cannot start an already running container")
	ErrPaused     = errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	ErrNotPaused  = errors.New("container not paused")
	ErrStopped    = errors.New("cannot start a container that has stopped")
	ErrInvalidID  = errors.New("invalid container id format")
	ErrNotStopped = errors.New("container is not stopped")
)

// ErrProtocol is what a request gets, also one that was under way, when the guest has
// sent something else than an honest one does, or takes nothing. The VM is ended.
var ErrProtocol = controlport.ErrViolation

// ErrVMLost is what a request gets when the VM or its monitor has gone while
// the request was under way.
var ErrVMLost = vmm.ErrLost
