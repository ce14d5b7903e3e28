package devicefilter

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzCompile asks the program and the rules, word for word, about an access.
func FuzzCompile(f *testing.F) {
	f.Add([]byte(`[{"access":"rwm"}]`), false, byte(1), uint32(1), uint32(3))
	f.Add([]byte(`[{"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":0,"access":"rw"}]`), true, byte(6), uint32(8), uint32(0))
	f.Add([]byte(`[{"allow":true},{"type":"u","major":10,"minor":229,"access":"wm"},{"type":"a","major":-1,"access":"m"}]`), false, byte(0), uint32(10), uint32(229))
	f.Add([]byte(`[{"access":"rwm"},{"allow":true,"type":"b","major":4294967304,"access":"rw"}]`), true, byte(1), uint32(8), uint32(0))
	f.Add([]byte(`[{},{"allow":true,"minor":0}]`), true, byte(4), uint32(8), uint32(149))
	f.Fuzz(func(t *testing.T, raw []byte, block bool, access byte, major, minor uint32) {
		var rules []specs.LinuxDeviceCgroup
		if err := json.Unmarshal(raw, &rules); err != nil {
			return
		}
		program, err := Compile(rules)
		if err != nil {
			return
		}
		kind := uint32(bpfDeviceChar)
		if block {
			kind = bpfDeviceBlock
		}
		asked := 1 + uint32(access)%bpfAccessAll    // never none
		major, minor = major%(1<<12), minor%(1<<20) // those of the kernel's dev_t
		all := append(slices.Clone(rules), standardDevices...)
		if got, want := runFilter(t, program, kind, asked, major, minor), allowed(t, all, kind, asked, major, minor); got != want {
			t.Errorf("rules %s, kind %d, access %d, device %d:%d: allowed = %v, want %v", raw, kind, asked, major, minor, got, want)
		}
	})
}
