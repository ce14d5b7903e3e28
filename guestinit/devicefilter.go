package main

import (
	"bytes"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// progLoad and progAttach are the parts of union bpf_attr that BPF_PROG_LOAD and
// BPF_PROG_ATTACH read (bpf(2)).
type progLoad struct {
	progType     uint32
	instructions uint32
	program      uint64
	license      uint64
}

type progAttach struct {
	target uint32
	prog   uint32
	kind   uint32
	flags  uint32
}

// A deviceFilter is a program that the kernel asks about each device that a
// process of a cgroup opens or makes a node of.
type deviceFilter struct {
	program []byte
	fd      int
}

// attachDeviceFilter puts program, which the host has compiled, before a cgroup's
// devices.
func attachDeviceFilter(cgroup int, program []byte) (*deviceFilter, error) {
	const instructionBytes = 8
	license := []byte("Apache-2.0\x00")
	load := progLoad{
		progType:     unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		instructions: uint32(len(program) / instructionBytes),
		program:      uint64(uintptr(unsafe.Pointer(unsafe.SliceData(program)))),
		license:      uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, fmt.Errorf("load device filter: %w", err)
	}
	attach := progAttach{target: uint32(cgroup), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("attach device filter: %w", err)
	}
	return &deviceFilter{program: program, fd: fd}, nil
}

// detach takes the filter away from the cgroup again.
func (f *deviceFilter) detach(cgroup int) error {
	detach := progAttach{target: uint32(cgroup), prog: uint32(f.fd), kind: unix.BPF_CGROUP_DEVICE}
	if _, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&detach), unsafe.Sizeof(detach)); err != nil {
		return fmt.Errorf("detach device filter: %w", err)
	}
	return unix.Close(f.fd)
}

// filterDevices replaces the groundwork's filter on the container's cgroup by the
// given one. An empty filter means none.
func (c *container) filterDevices(program []byte) (err error) {
	if c.devices != nil {
		if bytes.Equal(program, c.devices.program) {
			return nil
		}
		if err := c.devices.detach(c.cgroup.fd); err != nil {
			return err
		}
		c.devices = nil
	}
	if len(program) > 0 {
		c.devices, err = attachDeviceFilter(c.cgroup.fd, program)
	}
	return err
}

// bpf repeats a call that a signal has interrupted: the verifier gives up with
// EAGAIN then, and the Go runtime sends its threads signals at any time.
func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EAGAIN:
		default:
			return 0, errno
		}
	}
}
