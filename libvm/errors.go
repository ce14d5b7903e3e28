package libvm

import (
	"errors"

	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// The errors of a container's life, to be tested with errors.Is. Callers of runc
// match these texts (docs/contract.md, "Errors"), so tests pin them.
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

// ErrProtocol is matched by the error of a request to a guest that broke the
// protocol: the guest sent something that an honest guest does not send, or took
// nothing in time. Requests under way get it too. The VM has been ended then.
var ErrProtocol = controlport.ErrViolation

// ErrVMLost is matched by the error of a request during which the VM or its monitor
// ended.
var ErrVMLost = vmm.ErrLost
