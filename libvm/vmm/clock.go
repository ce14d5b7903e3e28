package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/tsc"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
)

// The clock of an emulated guest is the host's time stamp counter, which QEMU gives
// it as it is, and what the guest's kernel takes the counter's rate to be. A kernel
// that measures it by itself counts a timer of QEMU's, and where QEMU waits for a
// processor meanwhile it may find 12 times the rate. A template would keep that for
// all its copies. So the kernel is told the rate, and what it made of it is checked
// before the VM is saved.

// tellRate puts the counter's rate on the command line of a guest that boots.
func (l *launch) tellRate() error {
	if l.from != nil || l.cfg.accel != accel.TCG {
		return nil
	}
	defer l.steps.Begin("measure the time stamp counter")()
	khz, err := tsc.Measure()
	if err != nil {
		l.log.Debug("the guest's kernel measures the time stamp counter", "because", err)
		return nil
	}
	l.cfg.tscKHz = khz
	return nil
}

// maxRateError is how far the guest's rate may be from the host's. What is less the
// kernel corrects within its first second.
const maxRateError = 0.01

// errClock is of a guest whose clock is too fast or too slow.
var errClock = errors.New("the guest's clock is wrong")

// checkClock asks an emulated guest that nothing was said to yet how fast it takes
// the counter to be. The error matches errClock if that is wrong; with any other the
// control port is of no more use. Nobody else was in the guest: it is believed.
func (v *VM) checkClock(a accel.Accel) error {
	if a != accel.TCG {
		return nil
	}
	host, err := tsc.Measure()
	if err != nil { // the guest's kernel may have been no luckier
		return fmt.Errorf("%w, or cannot be checked: %w", errClock, err)
	}
	guest, err := v.askClockRate()
	if err != nil {
		return fmt.Errorf("guest: rate of its clock: %w (boxlite and the initramfs must be of one build)", err)
	}
	v.log.Debug("rate of the time stamp counter", "host", host, "guest", math.Round(guest))
	if math.Abs(guest/float64(host)-1) > maxRateError {
		return fmt.Errorf("%w: it takes the time stamp counter to do %.0f kHz, which does %d", errClock, guest, host)
	}
	return nil
}

func (v *VM) askClockRate() (khz float64, err error) {
	if err := v.Control.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return 0, err
	}
	if _, err := v.Control.Write([]byte{guestproto.ClockRate}); err != nil {
		return 0, err
	}
	var rep guestproto.Reply
	if err := guestproto.ReadFrame(v.Control, guestproto.MaxReply, &rep); err != nil {
		return 0, err
	}
	if err := v.Control.SetDeadline(time.Time{}); err != nil {
		return 0, err
	}
	if rep.Error != nil {
		return 0, fmt.Errorf("%w: %w", errClock, guesttext.Error(rep.Error))
	}
	var rate guestproto.ClockRateReply
	err = json.Unmarshal(rep.Body, &rate)
	return rate.TSCKHz, err
}
