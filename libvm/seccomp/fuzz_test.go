package seccomp

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// FuzzCompile asks the filter and the profile, word for word, about a call.
func FuzzCompile(f *testing.F) {
	profile, err := os.ReadFile("testdata/default.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(profile, byte(0), uint16(1), uint32(0), uint64(0), uint64(8), uint64(0))
	for _, text := range []string{
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4095}]}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":[
			{"index":0,"value":4294967296,"op":"SCMP_CMP_LT"},{"index":1,"value":255,"valueTwo":7,"op":"SCMP_CMP_MASKED_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_KILL_PROCESS","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["openat"],"action":"SCMP_ACT_TRACE","args":[
			{"index":2,"value":1,"op":"SCMP_CMP_GE"},{"index":2,"value":9,"op":"SCMP_CMP_NE"}]},{"names":["openat"],"action":"SCMP_ACT_LOG"}]}`,
		`{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["close"],"action":"SCMP_ACT_LOG"},{"names":["close"],"action":"SCMP_ACT_TRAP","args":[
			{"index":0,"value":3,"op":"SCMP_CMP_GT"},{"index":5,"value":18446744073709551615,"op":"SCMP_CMP_LE"},{"index":1,"op":"SCMP_CMP_EQ"}]}]}`,
	} {
		f.Add([]byte(text), byte(1), uint16(0), uint32(7), uint64(1), uint64(1)<<32, uint64(1)<<63)
	}
	f.Fuzz(func(t *testing.T, raw []byte, arch byte, name uint16, nr uint32, first, second, third uint64) {
		var s specs.LinuxSeccomp
		if err := json.Unmarshal(raw, &s); err != nil {
			return
		}
		filter, err := Compile(&s)
		again, errAgain := Compile(&s)
		if !reflect.DeepEqual(filter, again) || (err == nil) != (errAgain == nil) {
			t.Errorf("Compile twice = %+v, %v, then %+v, %v", filter, err, again, errAgain)
		}
		if err != nil {
			return
		}
		if filter == nil {
			if s.DefaultAction != specs.ActAllow {
				t.Errorf("Compile(%s) = no filter", raw)
			}
			return
		}
		if n := len(filter.Program); n == 0 || n > maxProgram || len(filter.Encode()) != 8*n {
			t.Errorf("Compile(%s) = %d instructions, %d bytes", raw, n, len(filter.Encode()))
		}
		c := call{nr: nr, audit: 0xdead, args: [6]uint64{first, second, third, second, third, first}}
		if int(arch) < 4*len(abis) {
			a := &abis[int(arch)%len(abis)]
			c.audit = a.audit
			// A number drawn at random is hardly ever one that a rule names.
			if known, ok := a.number(nameOf(&s, name)); ok {
				c.nr = known + nr%2
			}
		}
		if got, want := simulate(t, filter, c), decide(t, &s, c); got != want {
			t.Errorf("%s: call %+v = %#x, want %#x", raw, c, got, want)
		}
	})
}

// nameOf picks a call that a profile names.
func nameOf(s *specs.LinuxSeccomp, n uint16) string {
	var names []string
	for _, r := range s.Syscalls {
		names = append(names, r.Names...)
	}
	if len(names) == 0 {
		return "read"
	}
	return names[int(n)%len(names)]
}

// decide is what package documentation says of a call.
func decide(t *testing.T, s *specs.LinuxSeccomp, c call) uint32 {
	t.Helper()
	fallback := mustAction(t, s.DefaultAction, s.DefaultErrnoRet)
	var own *abi // the one with the call's number
	for i := range abis {
		if abis[i].audit == c.audit && abis[i].bit <= c.nr && (own == nil || abis[i].bit >= own.bit) {
			own = &abis[i]
		}
	}
	if own == nil || own != &abis[0] && !slices.Contains(s.Architectures, own.arch) {
		return kill
	}
	named, last := false, false // the call; one that is no older
	var conditional []uint32
	for _, r := range s.Syscalls {
		action := mustAction(t, r.Action, r.ErrnoRet)
		for _, name := range r.Names {
			nr, ok := own.number(name)
			last = last || ok && nr >= c.nr
			if !ok || nr != c.nr {
				continue
			}
			named = true
			switch {
			case action == fallback:
			case len(r.Args) == 0:
				return action // the first of them; none of the conditional ones counts
			case holds(r.Args, c, own.narrow):
				conditional = append(conditional, action)
			}
		}
	}
	switch {
	case len(conditional) > 0:
		return conditional[0]
	case named || last || fallback == allow || fallback == unix.SECCOMP_RET_LOG || fallback&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_TRACE:
		return fallback
	}
	return enosys
}

func mustAction(t *testing.T, name specs.LinuxSeccompAction, errno *uint) uint32 {
	t.Helper()
	action, err := parseAction(name, errno)
	if err != nil {
		t.Fatalf("compiled with action %s: %v", name, err)
	}
	return action
}

// holds says whether the conditions of one rule do.
func holds(args []specs.LinuxSeccompArg, c call, narrow bool) bool {
	seen, alternatives, all, one := [6]bool{}, false, true, false
	for _, arg := range args {
		alternatives = alternatives || seen[arg.Index]
		seen[arg.Index] = true
		actual, value := c.args[arg.Index], arg.Value
		if arg.Op == specs.OpMaskedEqual {
			actual, value = actual&arg.Value, arg.ValueTwo&arg.Value
		}
		if narrow {
			actual, value = uint64(uint32(actual)), uint64(uint32(value))
		}
		ok := map[specs.LinuxSeccompOperator]bool{
			specs.OpNotEqual: actual != value, specs.OpLessThan: actual < value, specs.OpLessEqual: actual <= value,
			specs.OpEqualTo: actual == value, specs.OpGreaterEqual: actual >= value, specs.OpGreaterThan: actual > value,
			specs.OpMaskedEqual: actual == value,
		}[arg.Op]
		all, one = all && ok, one || ok
	}
	return all || alternatives && one
}
