package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A script is the life of a process between its fork and its execve, written
// down beforehand as system calls. The child of a fork in a Go program must not
// allocate, lock or grow its stack, so it can follow such a list and no more.
// That is all that is needed to enter namespaces (a user namespace takes
// single-threaded processes only, which a forked child is and a Go program is
// not), drop privileges and exec, and it is much cheaper than a second Go
// runtime: no threads that count against pids.max, no heap that counts against
// memory.max, a few hundred microseconds instead of tens of milliseconds.
//
// The script lies in memory that the child shares with its parent. Steps that
// are only known once the container's file system stands are therefore appended
// while the child waits in an await step.
type script struct {
	memory []byte
	used   uintptr
	head   *scriptHead
	// what names each step for error messages, in parallel to head.steps.
	what []string
	// chdir is the step that enters the working directory, which may not be there
	// for the process's user; negative for none.
	chdir int
	// sock is the child's end of its connection with the parent.
	sock int
}

// maxSteps is beyond what the longest script needs: one step for each
// capability in the bounding and ambient sets and about fifty more.
const maxSteps = 400

// maxResults is how many keep steps a script can have.
const maxResults = 8

// scriptHead is at the start of a script's memory.
type scriptHead struct {
	count   uint32
	results uint32 // how many of result count
	result  [maxResults]int32
	message [2]int32
	steps   [maxSteps]step
}

// step is one system call.
type step struct {
	kind stepKind
	nr   uintptr
	args [6]uintptr
}

type stepKind uintptr

const (
	// must ends the child with a report when the call fails.
	must stepKind = iota
	// try goes on whatever the call returns.
	try
	// await is a read of one byte from the parent. An end of file ends the child.
	await
	// keep is must, and stores the call's result for the parent to read.
	keep
)

// newScript makes a script with room for data bytes of arguments.
func newScript(sock, data int) (*script, error) {
	size := int(unsafe.Sizeof(scriptHead{})) + data
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for a process's script: %w", size, err)
	}
	s := &script{memory: memory, used: unsafe.Sizeof(scriptHead{}), chdir: -1, sock: sock}
	s.head = (*scriptHead)(unsafe.Pointer(&memory[0]))
	return s, nil
}

// close unmaps the script. The child has its own mapping until it execs.
func (s *script) close() { _ = unix.Munmap(s.memory) }

func (s *script) add(kind stepKind, what string, nr uintptr, args ...uintptr) {
	if int(s.head.count) == maxSteps {
		panic("guestinit: script too long")
	}
	st := &s.head.steps[s.head.count]
	st.kind, st.nr = kind, nr
	copy(st.args[:], args)
	s.what = append(s.what, what)
	s.head.count++
}

// must appends a call whose failure ends the child.
func (s *script) must(what string, nr uintptr, args ...uintptr) { s.add(must, what, nr, args...) }

// try appends a call whose failure does not matter.
func (s *script) try(what string, nr uintptr, args ...uintptr) { s.add(try, what, nr, args...) }

// keep appends a call whose result the parent reads from head.result, in the
// order of such calls, once a report has come.
func (s *script) keep(what string, nr uintptr, args ...uintptr) { s.add(keep, what, nr, args...) }

// await lets the child wait for a byte from the parent.
func (s *script) await() {
	s.add(await, "wait for guestinit", unix.SYS_READ, uintptr(s.sock), s.bytes([]byte{0}), 1)
}

// report lets the child tell the parent that it has come this far.
func (s *script) report() {
	s.must("report to guestinit", unix.SYS_WRITE, uintptr(s.sock), s.bytes([]byte{0}), 1)
}

// bytes puts b into the script's memory and returns its address there.
func (s *script) bytes(b []byte) uintptr {
	s.used = (s.used + 7) &^ 7
	if int(s.used)+len(b) > len(s.memory) {
		panic("guestinit: script memory too small")
	}
	addr := &s.memory[s.used:][:len(b)+1][0]
	copy(s.memory[s.used:], b)
	s.used += uintptr(len(b))
	return uintptr(unsafe.Pointer(addr))
}

// cstring puts a NUL-terminated string into the script's memory.
func (s *script) cstring(str string) uintptr { return s.bytes(append([]byte(str), 0)) }

// cstrings puts a NULL-terminated vector of strings into the script's memory.
func (s *script) cstrings(strs []string) uintptr {
	vector := make([]uintptr, 0, len(strs)+1)
	for _, str := range strs {
		vector = append(vector, s.cstring(str))
	}
	return put(s, append(vector, 0))
}

// put copies a slice of plain values into the script's memory. An empty one
// gets an address too.
func put[T any](s *script, values []T) uintptr {
	if len(values) == 0 {
		return s.bytes([]byte{0})
	}
	size := len(values) * int(unsafe.Sizeof(values[0]))
	return s.bytes(unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), size))
}

// scriptSize is the memory that args and env take in a script, with room for
// everything else: strings, id lists, a seccomp filter.
func scriptSize(args, env []string) int {
	const pointer, room = 16, 256 << 10
	size := room
	for _, list := range [][]string{args, env} {
		for _, str := range list {
			size += len(str) + pointer + 8
		}
	}
	return size
}
