// Package devicefilter turns the device rules of config.json into a program. The
// guest's kernel asks the program about each access to a device.
package devicefilter

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Numbers of struct bpf_cgroup_dev_ctx (linux/bpf.h).
const (
	bpfDeviceBlock = 1
	bpfDeviceChar  = 2
	bpfAccessMknod = 1
	bpfAccessRead  = 2
	bpfAccessWrite = 4
	bpfAccessAll   = bpfAccessMknod | bpfAccessRead | bpfAccessWrite
)

// Compile turns the device rules of config.json into the eBPF program that holds
// them in the guest (BPF_PROG_TYPE_CGROUP_DEVICE, in the kernel's form). Rules that
// forbid nothing give an empty program. As in cgroup v1 the last rule that matches
// decides, and what no rule matches is allowed. As in runc the standard devices are
// always allowed.
func Compile(rules []specs.LinuxDeviceCgroup) ([]byte, error) {
	rules = append(slices.Clone(rules), standardDevices...)
	matches := make([]match, len(rules))
	for i, r := range rules {
		var err error
		if matches[len(rules)-1-i], err = newMatch(r); err != nil {
			return nil, err
		}
	}
	if matches = simplify(matches); len(matches) == 0 {
		return nil, nil
	}
	return assemble(matches)
}

// Default is the program of a container whose rules deny all devices but the
// standard ones: that of nearly every container.
func Default() []byte {
	program, err := Compile([]specs.LinuxDeviceCgroup{{Access: "rwm"}})
	if err != nil {
		panic(err) // the rules above
	}
	return program
}

// match is a rule in numbers. Zero kind and negative device numbers are any.
type match struct {
	allow        bool
	kind         int32
	major, minor int64
	access       int32
}

func newMatch(r specs.LinuxDeviceCgroup) (m match, err error) {
	m = match{allow: r.Allow}
	switch r.Type {
	case "", "a":
	case "b":
		m.kind = bpfDeviceBlock
	case "c", "u": // an unbuffered one, says mknod(1)
		m.kind = bpfDeviceChar
	default:
		return m, fmt.Errorf("linux.resources.devices: type %q: a, b or c", r.Type)
	}
	if m.major, err = number("major", r.Major); err != nil {
		return m, err
	}
	if m.minor, err = number("minor", r.Minor); err != nil {
		return m, err
	}
	m.access, err = accessBits(r.Access)
	return m, err
}

// number refuses what an instruction would hold in part, and so take for the number
// of another device. A device's numbers have 12 and 20 bits.
func number(which string, n *int64) (int64, error) {
	if n == nil {
		return -1, nil
	}
	if *n > math.MaxInt32 {
		return 0, fmt.Errorf("linux.resources.devices: %s %d: at most %d", which, *n, math.MaxInt32)
	}
	return max(*n, -1), nil
}

// covers says that m matches whatever other does.
func (m match) covers(other match) bool {
	return (m.kind == 0 || m.kind == other.kind) && (m.major < 0 || m.major == other.major) &&
		(m.minor < 0 || m.minor == other.minor) && m.access&other.access == other.access
}

// meets says that there are devices which both match.
func (m match) meets(other match) bool {
	return (m.kind == 0 || other.kind == 0 || m.kind == other.kind) && (m.major < 0 || other.major < 0 || m.major == other.major) &&
		(m.minor < 0 || other.minor < 0 || m.minor == other.minor)
}

// everything is what a rule for all devices matches.
var everything = match{major: -1, minor: -1, access: bpfAccessAll}

// simplify takes out what makes no difference to matches, of which the first
// decides and none allows, and sorts those whose order makes none. Docker, Podman
// and containerd ask for the same in different words; this gives them all one
// program, and the kernel less to check.
func simplify(matches []match) []match {
	if i := slices.IndexFunc(matches, func(m match) bool { return m.covers(everything) }); i >= 0 {
		matches = matches[:i+1] // none of the others is ever asked
	}
	var kept []match
	for i, m := range matches {
		if !slices.ContainsFunc(kept, func(k match) bool { return k.allow == m.allow && k.covers(m) }) && !falls(m, matches[i+1:]) {
			kept = append(kept, m)
		}
	}
	for run := kept; len(run) > 0; {
		end := slices.IndexFunc(run, func(m match) bool { return m.allow != run[0].allow })
		if end < 0 {
			end = len(run)
		}
		slices.SortFunc(run[:end], match.compare)
		run = run[end:]
	}
	return kept
}

func (m match) compare(other match) int {
	return cmp.Or(cmp.Compare(m.kind, other.kind), cmp.Compare(m.major, other.major), cmp.Compare(m.minor, other.minor), cmp.Compare(m.access, other.access))
}

// falls says that what m matches would be decided just so by the rest.
func falls(m match, rest []match) bool {
	for _, r := range rest {
		if r.allow == m.allow && r.covers(m) {
			return true
		}
		if r.allow != m.allow && r.meets(m) {
			return false
		}
	}
	return m.allow
}

// assemble writes the program that asks the matches one after the other.
func assemble(matches []match) ([]byte, error) {
	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // access in the upper half, type in the lower
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R2, 0xffff),
		asm.RSh.Imm(asm.R3, 16),
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
	}
	label := "" // of the next instruction, where the match before jumps if it is none
	add := func(instructions ...asm.Instruction) {
		if label != "" {
			instructions[0] = instructions[0].WithSymbol(label)
			label = ""
		}
		program = append(program, instructions...)
	}
	for i, m := range matches {
		next := fmt.Sprintf("after match %d", i)
		add(append(m.test(next), verdict(m.allow)...)...)
		label = next
	}
	add(verdict(true)...)
	var out bytes.Buffer
	if err := program.Marshal(&out, binary.LittleEndian); err != nil {
		return nil, fmt.Errorf("device filter: %w", err)
	}
	return out.Bytes(), nil
}

func verdict(allow bool) asm.Instructions {
	value := int32(0)
	if allow {
		value = 1
	}
	return asm.Instructions{asm.Mov.Imm(asm.R0, value), asm.Return()}
}

// test jumps to otherwise if m does not decide the access in the registers: an
// allowance must cover all of it, a denial any of it.
func (m match) test(otherwise string) asm.Instructions {
	test := asm.Instructions{asm.Mov.Reg(asm.R1, asm.R3)}
	if m.allow {
		test = append(test, asm.And.Imm(asm.R1, bpfAccessAll&^m.access), asm.JNE.Imm(asm.R1, 0, otherwise))
	} else {
		test = append(test, asm.And.Imm(asm.R1, m.access), asm.JEq.Imm(asm.R1, 0, otherwise))
	}
	if m.kind != 0 {
		test = append(test, asm.JNE.Imm(asm.R2, m.kind, otherwise))
	}
	if m.major >= 0 {
		test = append(test, asm.JNE.Imm(asm.R4, int32(m.major), otherwise))
	}
	if m.minor >= 0 {
		test = append(test, asm.JNE.Imm(asm.R5, int32(m.minor), otherwise))
	}
	return test
}

func accessBits(text string) (int32, error) {
	if text == "" {
		text = "rwm"
	}
	bits := int32(0)
	for _, c := range text {
		switch c {
		case 'r':
			bits |= bpfAccessRead
		case 'w':
			bits |= bpfAccessWrite
		case 'm':
			bits |= bpfAccessMknod
		default:
			return 0, fmt.Errorf("linux.resources.devices: access %q: of the letters r, w and m", text)
		}
	}
	return bits, nil
}

// standardDevices are what every container may use: nodes may be made of
// anything, and the devices of a container's /dev opened. The last one is
// /dev/net/tun, which is of use in a user namespace.
var standardDevices = func() []specs.LinuxDeviceCgroup {
	any := int64(-1)
	rules := []specs.LinuxDeviceCgroup{
		{Allow: true, Type: "c", Major: &any, Minor: &any, Access: "m"},
		{Allow: true, Type: "b", Major: &any, Minor: &any, Access: "m"},
	}
	for number := range strings.FieldsSeq("1:3 1:5 1:7 1:8 1:9 5:0 5:1 5:2 136:-1 10:200") {
		major, minor := new(int64), new(int64)
		if _, err := fmt.Sscanf(number, "%d:%d", major, minor); err != nil {
			panic(err) // the list above
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: major, Minor: minor, Access: "rwm"})
	}
	return rules
}()
