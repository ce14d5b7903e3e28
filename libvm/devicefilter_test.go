package libvm

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runFilter interprets a device filter: the few instructions that deviceFilter
// uses, from the kernel's encoding.
func runFilter(t *testing.T, program []byte, deviceType, access, major, minor uint32) bool {
	t.Helper()
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
		nodes                  []specs.LinuxDevice
		kind, access, maj, min uint32
		want                   bool
	}{
		{"no rule allows", nil, nil, bpfDeviceBlock, bpfAccessWrite, 8, 0, true},
		{"all denied", []specs.LinuxDeviceCgroup{denyAll}, nil, bpfDeviceChar, bpfAccessRead, 1, 11, false},
		{"standard device in spite of it", []specs.LinuxDeviceCgroup{denyAll}, nil, bpfDeviceChar, bpfAccessRead | bpfAccessWrite, 1, 3, true},
		{"a terminal in spite of it", []specs.LinuxDeviceCgroup{denyAll}, nil, bpfDeviceChar, bpfAccessRead, 136, 77, true},
		{"mknod of anything in spite of it", []specs.LinuxDeviceCgroup{denyAll}, nil, bpfDeviceBlock, bpfAccessMknod, 8, 0, true},
		{"same number, block instead of char", []specs.LinuxDeviceCgroup{denyAll}, nil, bpfDeviceBlock, bpfAccessRead, 1, 3, false},
		{"a node of linux.devices", []specs.LinuxDeviceCgroup{denyAll}, []specs.LinuxDevice{{Type: "u", Major: 10, Minor: 229}}, bpfDeviceChar, bpfAccessWrite, 10, 229, true},
		{"a fifo among linux.devices opens nothing", []specs.LinuxDeviceCgroup{denyAll}, []specs.LinuxDevice{{Type: "p", Major: 10, Minor: 229}}, bpfDeviceChar, bpfAccessWrite, 10, 229, false},
		{"read allowed, read asked", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Type: "b", Major: n(8), Access: "r"}}, nil, bpfDeviceBlock, bpfAccessRead, 8, 5, true},
		{"read allowed, both asked", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Type: "b", Major: n(8), Access: "r"}}, nil, bpfDeviceBlock, bpfAccessRead | bpfAccessWrite, 8, 5, false},
		{"the last rule decides", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, {Type: "b", Major: n(8), Minor: n(0), Access: "w"}}, nil, bpfDeviceBlock, bpfAccessRead | bpfAccessWrite, 8, 0, false},
		{"a denial of writes leaves reads", []specs.LinuxDeviceCgroup{{Type: "b", Access: "w"}}, nil, bpfDeviceBlock, bpfAccessRead, 8, 0, true},
	} {
		program, err := deviceFilter(c.rules, c.nodes)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := runFilter(t, program, c.kind, c.access, c.maj, c.min); got != c.want {
			t.Errorf("%s: allowed = %v, want %v", c.name, got, c.want)
		}
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}, {Type: "c", Access: "rq"}} {
		if _, err := deviceFilter([]specs.LinuxDeviceCgroup{bad}, nil); err == nil || !strings.Contains(err.Error(), "linux.resources.devices") {
			t.Errorf("deviceFilter(%+v) = %v, want an error that names the field", bad, err)
		}
	}
}
