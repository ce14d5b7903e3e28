package libvm

import (
	"errors"
	"path/filepath"

	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// ConsoleLog is the file with the first 256 KiB that the guest has written to its
// console: its kernel's messages, and with Runtime.Debug its steps. A hostile guest
// writes there what it likes. Delete removes it. The containers of a pod have one in common.
func (c *Container) ConsoleLog() string { return filepath.Join(c.monitorDir(), consoleLog) }

// InGuest says that an error's reason lies in the guest, so that its console may
// show more: the VM has ended, or the guest does not answer, or not as it should.
func InGuest(err error) bool {
	return errors.Is(err, ErrVMLost) || errors.Is(err, ErrProtocol) || errors.Is(err, vmm.ErrNoAnswer)
}
