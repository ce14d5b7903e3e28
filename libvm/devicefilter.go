package libvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
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

// deviceFilter compiles the device rules of config.json into the eBPF program
// that holds them in the guest (BPF_PROG_TYPE_CGROUP_DEVICE, in the kernel's
// form). As in cgroup v1, the last rule that matches decides, and no rule allows.
// As in runc, the nodes of linux.devices and the standard ones are allowed
// whatever the rules say.
func deviceFilter(rules []specs.LinuxDeviceCgroup, nodes []specs.LinuxDevice) ([]byte, error) {
	rules = slices.Clone(rules)
	for _, d := range nodes {
		if d.Type == "p" {
			continue // a fifo is no device
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: charType(d.Type), Major: &d.Major, Minor: &d.Minor, Access: "rwm"})
	}
	rules = append(rules, standardDevices...)

	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // access in the upper half, type in the lower
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R2, 0xffff),
		asm.RSh.Imm(asm.R3, 16),
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
	}
	label := "" // of the next instruction, where the rule before jumps if it does not match
	add := func(instructions ...asm.Instruction) {
		if label != "" {
			instructions[0] = instructions[0].WithSymbol(label)
			label = ""
		}
		program = append(program, instructions...)
	}
	for i, rule := range slices.Backward(rules) {
		next := fmt.Sprintf("before rule %d", i)
		test, err := matchRule(rule, next)
		if err != nil {
			return nil, err
		}
		add(append(test, verdict(rule.Allow)...)...)
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

// matchRule jumps to otherwise if the rule does not decide the access in the
// registers: an allowance must cover all of it, a denial any of it.
func matchRule(rule specs.LinuxDeviceCgroup, otherwise string) (asm.Instructions, error) {
	access, err := accessBits(rule.Access)
	if err != nil {
		return nil, err
	}
	test := asm.Instructions{asm.Mov.Reg(asm.R1, asm.R3)}
	if rule.Allow {
		test = append(test, asm.And.Imm(asm.R1, bpfAccessAll&^access), asm.JNE.Imm(asm.R1, 0, otherwise))
	} else {
		test = append(test, asm.And.Imm(asm.R1, access), asm.JEq.Imm(asm.R1, 0, otherwise))
	}
	switch rule.Type {
	case "", "a":
	case "b":
		test = append(test, asm.JNE.Imm(asm.R2, bpfDeviceBlock, otherwise))
	case "c":
		test = append(test, asm.JNE.Imm(asm.R2, bpfDeviceChar, otherwise))
	default:
		return nil, fmt.Errorf("linux.resources.devices: type %q: a, b or c", rule.Type)
	}
	if rule.Major != nil && *rule.Major >= 0 {
		test = append(test, asm.JNE.Imm(asm.R4, int32(*rule.Major), otherwise))
	}
	if rule.Minor != nil && *rule.Minor >= 0 {
		test = append(test, asm.JNE.Imm(asm.R5, int32(*rule.Minor), otherwise))
	}
	return test, nil
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
// anything, and the devices of a container's /dev opened.
var standardDevices = func() []specs.LinuxDeviceCgroup {
	any := int64(-1)
	rules := []specs.LinuxDeviceCgroup{
		{Allow: true, Type: "c", Major: &any, Minor: &any, Access: "m"},
		{Allow: true, Type: "b", Major: &any, Minor: &any, Access: "m"},
	}
	for _, number := range strings.Fields("1:3 1:5 1:7 1:8 1:9 5:0 5:1 5:2 136:-1") {
		major, minor := new(int64), new(int64)
		if _, err := fmt.Sscanf(number, "%d:%d", major, minor); err != nil {
			panic(err) // the list above
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: major, Minor: minor, Access: "rwm"})
	}
	return rules
}()
