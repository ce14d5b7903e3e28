package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	allow = unix.SECCOMP_RET_ALLOW
	kill  = unix.SECCOMP_RET_KILL_THREAD
	eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	// What Docker's profile answers by default.
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// A call is what a filter sees.
type call struct {
	audit, nr uint32
	args      [6]uint64
}

// simulate runs a filter on a call.
func simulate(t *testing.T, f *Filter, c call) uint32 {
	t.Helper()
	var program []bpf.Instruction
	for _, ins := range f.Program {
		program = append(program, bpf.RawInstruction{Op: ins.Code, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	// The VM reads big-endian words, so each word is put down as one, where
	// the kernel has the same word in the machine's order.
	data := binary.BigEndian.AppendUint32(nil, c.nr)
	data = binary.BigEndian.AppendUint32(data, c.audit)
	data = append(data, make([]byte, 8)...)
	for _, arg := range c.args {
		data = binary.BigEndian.AppendUint32(data, uint32(arg))
		data = binary.BigEndian.AppendUint32(data, uint32(arg>>32))
	}
	action, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(action)
}

func compile(t *testing.T, s *specs.LinuxSeccomp) *Filter {
	t.Helper()
	f, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func number(t *testing.T, arch specs.Arch, name string) (audit, nr uint32) {
	t.Helper()
	for i := range abis {
		if abis[i].arch == arch {
			nr, ok := abis[i].number(name)
			if !ok {
				t.Fatalf("%s has no %s", arch, name)
			}
			return abis[i].audit, nr
		}
	}
	t.Fatalf("no architecture %s", arch)
	return 0, 0
}

// TestDefaultProfile compiles the profile of containers-common, which is
// Docker's, and holds it against calls.
func TestDefaultProfile(t *testing.T) {
	text, err := os.ReadFile("testdata/default.json")
	if err != nil {
		t.Fatal(err)
	}
	var s specs.LinuxSeccomp
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	f := compile(t, &s)
	t.Logf("%d instructions", len(f.Program))
	for _, c := range []struct {
		arch specs.Arch
		name string
		args [6]uint64
		want uint32
	}{
		{specs.ArchX86_64, "read", [6]uint64{}, allow},
		{specs.ArchX86_64, "execve", [6]uint64{}, allow},
		{specs.ArchX86, "read", [6]uint64{}, allow},
		{specs.ArchX32, "write", [6]uint64{}, allow},
		{specs.ArchX86_64, "personality", [6]uint64{0}, allow},
		{specs.ArchX86_64, "personality", [6]uint64{8}, allow},
		{specs.ArchX86_64, "personality", [6]uint64{0x20000}, allow},
		{specs.ArchX86_64, "personality", [6]uint64{0xffffffff}, allow},
		{specs.ArchX86_64, "personality", [6]uint64{1}, enosys},
		{specs.ArchX86_64, "personality", [6]uint64{1<<32 | 8}, enosys},
		{specs.ArchX86_64, "clone", [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allow},
		{specs.ArchX86_64, "socket", [6]uint64{unix.AF_INET}, allow},
		{specs.ArchX86_64, "init_module", [6]uint64{}, eperm},
		{specs.ArchX86_64, "settimeofday", [6]uint64{}, eperm},
		{specs.ArchX86_64, "kexec_load", [6]uint64{}, eperm},
	} {
		audit, nr := number(t, c.arch, c.name)
		if got := simulate(t, f, call{audit, nr, c.args}); got != c.want {
			t.Errorf("%s %s%v = %#x, want %#x", c.arch, c.name, c.args, got, c.want)
		}
	}
	if got := simulate(t, f, call{audit: 0xdead, nr: 0}); got != kill {
		t.Errorf("foreign architecture = %#x, want kill", got)
	}
	if got := simulate(t, f, call{audit: abis[0].audit, nr: 999}); got != enosys {
		t.Errorf("unknown call = %#x, want ENOSYS", got)
	}
}

// TestOperators compares each operator with its definition around the limits
// of both halves.
func TestOperators(t *testing.T) {
	const mask = 0xff00000000ff
	definitions := map[specs.LinuxSeccompOperator]func(arg, value uint64) bool{
		specs.OpEqualTo:      func(a, v uint64) bool { return a == v },
		specs.OpNotEqual:     func(a, v uint64) bool { return a != v },
		specs.OpLessThan:     func(a, v uint64) bool { return a < v },
		specs.OpLessEqual:    func(a, v uint64) bool { return a <= v },
		specs.OpGreaterThan:  func(a, v uint64) bool { return a > v },
		specs.OpGreaterEqual: func(a, v uint64) bool { return a >= v },
		specs.OpMaskedEqual:  func(a, v uint64) bool { return a&mask == v&mask },
	}
	values := []uint64{0, 1, 0xff, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 0xff00000000ff, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	for op, holds := range definitions {
		for _, value := range values {
			arg := specs.LinuxSeccompArg{Index: 3, Op: op, Value: value}
			if op == specs.OpMaskedEqual {
				arg.Value, arg.ValueTwo = mask, value
			}
			f := compile(t, &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno,
				Syscalls:      []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg}}},
			})
			for _, actual := range values {
				want := eperm
				if holds(actual, value) {
					want = allow
				}
				if got := simulate(t, f, call{abis[0].audit, 0, [6]uint64{3: actual}}); got != want {
					t.Errorf("%s(%#x, %#x) = %#x, want %#x", op, actual, value, got, want)
				}
			}
		}
	}
}

func TestRules(t *testing.T) {
	arg := func(index uint, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
	}
	enxio := uint(unix.ENXIO)
	f := compile(t, &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "no_such_call"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(1, 2)}},
			{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(2, 3)}},
			{Names: []string{"write"}, Action: specs.ActErrno, ErrnoRet: &enxio, Args: []specs.LinuxSeccompArg{arg(0, 1)}},
			{Names: []string{"write"}, Action: specs.ActAllow},
			{Names: []string{"close"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(0, 2)}},
			{Names: []string{"open"}, Action: specs.ActKillProcess},
			{Names: []string{"stat"}, Action: specs.ActErrno},
			{Names: []string{"fstat"}, Action: specs.ActTrap},
			{Names: []string{"lstat"}, Action: specs.ActLog},
			{Names: []string{"poll"}, Action: specs.ActTrace, ErrnoRet: &enxio},
		},
	})
	for _, c := range []struct {
		name string
		args [6]uint64
		want uint32
	}{
		{"read", [6]uint64{1, 2}, allow},
		{"read", [6]uint64{1, 3}, eperm},
		{"read", [6]uint64{0, 0, 3}, allow},
		{"write", [6]uint64{1}, allow},
		{"close", [6]uint64{1}, allow},
		{"close", [6]uint64{2}, allow},
		{"close", [6]uint64{3}, eperm},
		{"open", [6]uint64{}, unix.SECCOMP_RET_KILL_PROCESS},
		{"stat", [6]uint64{}, eperm},
		{"fstat", [6]uint64{}, unix.SECCOMP_RET_TRAP},
		{"lstat", [6]uint64{}, unix.SECCOMP_RET_LOG},
		{"poll", [6]uint64{}, unix.SECCOMP_RET_TRACE | uint32(unix.ENXIO)},
		{"mmap", [6]uint64{}, enosys}, // above all that the filter names
	} {
		audit, nr := number(t, specs.ArchX86_64, c.name)
		if got := simulate(t, f, call{audit, nr, c.args}); got != c.want {
			t.Errorf("%s%v = %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	audit, nr := number(t, specs.ArchX32, "write")
	if got := simulate(t, f, call{audit, nr, [6]uint64{}}); got != kill {
		t.Errorf("x32 = %#x, want kill", got)
	}
}

func TestRefused(t *testing.T) {
	out := uint(1 << 20)
	for name, s := range map[string]*specs.LinuxSeccomp{
		"action":       {DefaultAction: "SCMP_ACT_NONE"},
		"flag":         {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
		"architecture": {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{"X"}},
		"errno":        {DefaultAction: specs.ActErrno, DefaultErrnoRet: &out},
		"operator": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "X"}}},
		}},
		"index": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}},
		}},
	} {
		if _, err := Compile(s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActNotify})
	if !errors.Is(err, ErrNotify) {
		t.Errorf("notify: %v", err)
	}
	if f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}); f != nil || err != nil {
		t.Errorf("everything allowed: %v, %v", f, err)
	}
}

// TestTables checks that look-ups can rely on the order.
func TestTables(t *testing.T) {
	for _, a := range abis {
		for _, s := range a.table {
			if nr, ok := a.number(s.name); !ok || nr != s.nr|a.bit {
				t.Errorf("%s %s = %d, %v", a.arch, s.name, nr, ok)
			}
		}
	}
}

// TestX32HasItsOwnNumbers names calls whose structures differ from x86_64's, which the
// kernel has given x32 others for (syscall_64.tbl, from 512 on).
func TestX32HasItsOwnNumbers(t *testing.T) {
	x32 := abi{bit: x32Bit, table: tableX32}
	for name, want := range map[string]uint32{
		"rt_sigaction": 512, "ioctl": 514, "readv": 515, "recvfrom": 517, "execve": 520, "ptrace": 521, "timer_create": 526, "kexec_load": 528,
		"vmsplice": 532, "move_pages": 533, "process_vm_writev": 540, "io_setup": 543, "io_submit": 544, "execveat": 545, "pwritev2": 547, "read": 0,
	} {
		if nr, ok := x32.number(name); !ok || nr != want|x32Bit {
			t.Errorf("%s = %d, %v, want %d", name, nr&^x32Bit, ok, want)
		}
	}
}
