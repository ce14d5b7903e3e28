package seccomp

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// syscallNumber is a row of a table that is sorted by name.
type syscallNumber struct {
	name string
	nr   uint32
}

// An abi is one of the system call interfaces that a kernel offers.
type abi struct {
	arch specs.Arch
	// audit is its AUDIT_ARCH_ value.
	audit uint32
	// bit is set in each of its numbers: x32 shares its audit value with x86_64.
	bit   uint32
	table []syscallNumber
	// narrow says that arguments have 32 bits.
	narrow bool
}

// number looks a system call up.
func (a *abi) number(name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(a.table, name, func(s syscallNumber, name string) int {
		return strings.Compare(s.name, name)
	})
	if !ok {
		return 0, false
	}
	return a.table[i].nr | a.bit, true
}
