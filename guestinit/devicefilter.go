package main

import (
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

// attachDeviceFilter has the kernel ask program, which the host has compiled,
// about each device that a process of the cgroup opens or makes a node of.
func attachDeviceFilter(cgroup int, program []byte) error {
	const instructionBytes = 8
	license := []byte("Apache-2.0\x00")
	load := progLoad{
		progType:     unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		instructions: uint32(len(program) / instructionBytes),
		program:      uint64(uintptr(unsafe.Pointer(&program[0]))),
		license:      uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	if err != nil {
		return fmt.Errorf("load device filter: %w", err)
	}
	defer unix.Close(fd)
	attach := progAttach{target: uint32(cgroup), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attach device filter: %w", err)
	}
	return nil
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
