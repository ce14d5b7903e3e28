// Package tsc tells how fast the processor's time stamp counter counts, by the
// clock of the kernel that this program runs on. In an emulated guest the counter
// is the host's (QEMU gives it as it is), and so both sides find the same rate if
// the guest's kernel is right about it.
package tsc

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A Moment is the counter and the clock, read together.
type Moment struct {
	// The counter was begin before and end after the clock was read.
	begin, end uint64
	nanos      int64 // of CLOCK_MONOTONIC_RAW, which nobody slews
}

// readings are how often Now reads the two: what comes in between, on a busy
// machine, comes between some of them only.
const readings = 20

// Now reads counter and clock, as close to each other as it can.
func Now() (Moment, error) {
	var best Moment
	for i := range readings {
		var now unix.Timespec
		begin := counter()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now); err != nil {
			return Moment{}, fmt.Errorf("read the clock: %w", err)
		}
		m := Moment{begin: begin, end: counter(), nanos: now.Nano()}
		if m.end < m.begin {
			return Moment{}, errors.New("the time stamp counter goes backwards")
		}
		if i == 0 || m.end-m.begin < best.end-best.begin {
			best = m
		}
	}
	return best, nil
}

// KHz is the counter's rate from m until later, in kHz. It is off by no more than
// the part uncertain of itself.
func (m Moment) KHz(later Moment) (khz, uncertain float64, err error) {
	nanos := float64(later.nanos - m.nanos)
	least, most := float64(later.begin)-float64(m.end), float64(later.end)-float64(m.begin)
	if nanos <= 0 || least <= 0 {
		return 0, 0, errors.New("clock and time stamp counter do not go forward together")
	}
	ticks := (least + most) / 2
	return ticks / nanos * 1e6, (most - least) / 2 / ticks, nil
}

// What Measure wants, and how long it tries: the kernel itself corrects a rate that
// is off by less than 1 percent.
const (
	goodEnough = 1e-4
	pace       = 2 * time.Millisecond
	tries      = 50
)

// Measure is the counter's rate in kHz. It takes some milliseconds, on a busy
// machine more.
func Measure() (khz int, err error) {
	first, err := Now()
	if err != nil {
		return 0, err
	}
	for range tries {
		time.Sleep(pace)
		later, err := Now()
		if err != nil {
			return 0, err
		}
		rate, uncertain, err := first.KHz(later)
		if err != nil {
			return 0, err
		}
		if uncertain < goodEnough {
			return int(rate + 0.5), nil
		}
	}
	return 0, errors.New("the machine is too busy to measure its time stamp counter")
}
