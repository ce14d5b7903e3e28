package devicefilter

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runFilter interprets a device filter: the few instructions that Compile
// uses, from the kernel's encoding.
func runFilter(t *testing.T, program []byte, deviceType, access, major, minor uint32) bool {
	t.Helper()
	if len(program) == 0 {
		return true
	}
	var r [11]uint64
	ctx := map[int16]uint64{0: uint64(access<<16 | deviceType), 4: uint64(major), 8: uint64(minor)}
	for pc := 0; pc*8 < len(program); pc++ {
		in := program[pc*8:]
		op, dst, src := in[0], in[1]&0xf, in[1]>>4
		offset := int16(binary.LittleEndian.Uint16(in[2:]))
		imm := uint64(int64(int32(binary.LittleEndian.Uint32(in[4:]))))
		switch op {
		case 0x61: // ldxw
			r[dst] = ctx[offset]
		case 0xbf: // mov reg
			r[dst] = r[src]
		case 0xb7, 0xb4: // mov imm
			r[dst] = imm
		case 0x57: // and imm
			r[dst] &= imm
		case 0x77: // rsh imm
			r[dst] >>= imm
		case 0x55: // jne imm
			if r[dst] != imm {
				pc += int(offset)
			}
		case 0x15: // jeq imm
			if r[dst] == imm {
				pc += int(offset)
			}
		case 0x95: // exit
			return r[0] != 0
		default:
			t.Fatalf("instruction %d: opcode %#x", pc, op)
		}
	}
	t.Fatal("the program does not end")
	return false
}

func TestDeviceFilter(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	denyAll := specs.LinuxDeviceCgroup{Access: "rwm"}
	for _, c := range []struct {
		name                   string
		rules                  []specs.LinuxDeviceCgroup
		kind, access, maj, min uint32
		want                   bool
	}{
		{"no rule allows", nil, bpfDeviceBlock, bpfAccessWrite, 8, 0, true},
		{"all denied", []specs.LinuxDeviceCgroup{denyAll}, bpfDeviceChar, bpfAccessRead, 1, 11, false},
		{"standard device in spite of it", []specs.LinuxDeviceCgroup{denyAll}, bpfDeviceChar, bpfAccessRead | bpfAccessWrite, 1, 3, true},
		{"a terminal in spite of it", []specs.LinuxDeviceCgroup{denyAll}, bpfDeviceChar, bpfAccessRead, 136, 77, true},
		{"mknod of anything in spite of it", []specs.LinuxDeviceCgroup{denyAll}, bpfDeviceBlock, bpfAccessMknod, 8, 0, true},
		{"same number, block instead of char", []specs.LinuxDeviceCgroup{denyAll}, bpfDeviceBlock, bpfAccessRead, 1, 3, false},
		{"read allowed, read asked", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Type: "b", Major: n(8), Access: "r"}}, bpfDeviceBlock, bpfAccessRead, 8, 5, true},
		{"read allowed, both asked", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Type: "b", Major: n(8), Access: "r"}}, bpfDeviceBlock, bpfAccessRead | bpfAccessWrite, 8, 5, false},
		{"the last rule decides", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, {Type: "b", Major: n(8), Minor: n(0), Access: "w"}}, bpfDeviceBlock, bpfAccessRead | bpfAccessWrite, 8, 0, false},
		{"number 0 is not any", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Minor: n(0), Access: "rwm"}}, bpfDeviceBlock, bpfAccessRead, 8, 1, false},
		{"a denial of writes leaves reads", []specs.LinuxDeviceCgroup{{Type: "b", Access: "w"}}, bpfDeviceBlock, bpfAccessRead, 8, 0, true},
	} {
		program, err := Compile(c.rules)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := runFilter(t, program, c.kind, c.access, c.maj, c.min); got != c.want {
			t.Errorf("%s: allowed = %v, want %v", c.name, got, c.want)
		}
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}, {Type: "c", Access: "rq"}, {Major: n(1<<32 + 8), Access: "r"}, {Minor: n(1 << 32), Access: "r"}} {
		if _, err := Compile([]specs.LinuxDeviceCgroup{bad}); err == nil || !strings.Contains(err.Error(), "linux.resources.devices") {
			t.Errorf("Compile(%+v) = %v, want an error that names the field", bad, err)
		}
	}
}

// TestSimplify compares what is asked of a rule list, last rule first, with the
// program made of it, over lists and accesses drawn at random.
func TestSimplify(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	number := func() *int64 {
		return []*int64{nil, new(int64(-1)), new(int64(0)), new(int64(1)), new(int64(5))}[random.IntN(5)]
	}
	for range 5000 {
		rules := make([]specs.LinuxDeviceCgroup, random.IntN(7))
		for i := range rules {
			rules[i] = specs.LinuxDeviceCgroup{
				Allow: random.IntN(2) == 0, Type: []string{"a", "b", "c", ""}[random.IntN(4)], Major: number(), Minor: number(),
				Access: []string{"", "r", "rw", "rwm", "m", "wm"}[random.IntN(6)],
			}
		}
		program, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		all := append(slices.Clone(rules), standardDevices...)
		for range 50 {
			kind, access := uint32(1+random.IntN(2)), uint32(1+random.IntN(7))
			major, minor := []uint32{0, 1, 5, 136, 9}[random.IntN(5)], []uint32{0, 1, 3, 5, 7}[random.IntN(5)]
			if got, want := runFilter(t, program, kind, access, major, minor), allowed(t, all, kind, access, major, minor); got != want {
				t.Fatalf("rules %+v, kind %d, access %d, device %d:%d: allowed = %v, want %v", rules, kind, access, major, minor, got, want)
			}
		}
	}
}

// allowed is what the rules say, word for word.
func allowed(t *testing.T, rules []specs.LinuxDeviceCgroup, kind, access, major, minor uint32) bool {
	for _, r := range slices.Backward(rules) {
		bits, err := accessBits(r.Access)
		if err != nil {
			t.Fatal(err)
		}
		is := func(number *int64, n uint32) bool { return number == nil || *number < 0 || *number == int64(n) }
		sameKind := r.Type == "" || r.Type == "a" || (r.Type == "b") == (kind == bpfDeviceBlock)
		if !sameKind || !is(r.Major, major) || !is(r.Minor, minor) {
			continue
		}
		if r.Allow && access&^uint32(bits) == 0 {
			return true
		}
		if !r.Allow && access&uint32(bits) != 0 {
			return false
		}
	}
	return true
}

// TestOneProgram says that the rules of well-known callers are the default.
func TestOneProgram(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	denyAll := specs.LinuxDeviceCgroup{Access: "rwm"}
	allow := func(major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(major), Minor: n(minor), Access: "rwm"}
	}
	for name, rules := range map[string][]specs.LinuxDeviceCgroup{
		"runc spec, podman": {denyAll},
		"docker": {
			denyAll, allow(1, 5), allow(1, 3), allow(1, 9), allow(1, 8), allow(5, 0), allow(5, 1),
			{Type: "c", Major: n(10), Minor: n(229), Access: "rwm"},
		},
		"containerd": {
			denyAll,
			{Allow: true, Type: "c", Access: "m"},
			{Allow: true, Type: "b", Access: "m"},
			allow(1, 3), allow(1, 8), allow(1, 7), allow(5, 0), allow(1, 5), allow(1, 9), allow(5, 1), allow(136, -1), allow(5, 2),
		},
	} {
		program, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(program, Default()) {
			t.Errorf("%s: a program of its own: % x", name, program)
		}
	}
	if program, err := Compile([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}); err != nil || len(program) != 0 {
		t.Errorf("all allowed: program % x, error %v; want none", program, err)
	}
}
