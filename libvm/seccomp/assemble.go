package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, for a little-endian machine.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opRet  = unix.BPF_RET | unix.BPF_K
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opJa   = unix.BPF_JMP | unix.BPF_JA
	opJeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opJgt  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
)

// code is a piece of a program that only returns or runs off its end.
type code []unix.SockFilter

func load(offset uint32) unix.SockFilter { return unix.SockFilter{Code: opLoad, K: offset} }
func ret(action uint32) unix.SockFilter  { return unix.SockFilter{Code: opRet, K: action} }

// branch runs yes if the comparison holds and no otherwise. no must not run off
// its end. Conditional jumps reach 255 instructions, JA reaches all.
func branch(op uint16, k uint32, yes, no code) code {
	if len(no) <= 255 {
		return slices.Concat(code{{Code: op, Jt: uint8(len(no)), K: k}}, no, yes)
	}
	return slices.Concat(code{{Code: op, Jf: 1, K: k}, {Code: opJa, K: uint32(len(no))}}, no, yes)
}

// assemble makes the whole program: first by architecture, then by number.
func assemble(wanted []*abi, rules ruleSet, fallback uint32) code {
	// What comes in by an architecture that is not wanted is killed.
	rest := code{ret(unix.SECCOMP_RET_KILL_THREAD)}
	var audits []uint32
	for _, a := range wanted {
		if !slices.Contains(audits, a.audit) {
			audits = append(audits, a.audit)
		}
	}
	for _, audit := range slices.Backward(audits) {
		section := append(code{load(offsetNr)}, assembleNumbers(audit, wanted, rules, fallback)...)
		rest = branch(opJeq, audit, section, rest)
	}
	return append(code{load(offsetArch)}, rest...)
}

// span is a range of system call numbers, up to the next span's start, that
// are treated alike.
type span struct {
	start uint32
	leaf  code
	// action is what leaf returns if that is all it does.
	action uint32
	simple bool
}

// assembleNumbers makes the decision for the number in the accumulator.
func assembleNumbers(audit uint32, wanted []*abi, rules ruleSet, fallback uint32) code {
	var spans []span
	add := func(s span) {
		if n := len(spans); n > 0 && s.simple && spans[n-1].simple && spans[n-1].action == s.action {
			return
		}
		spans = append(spans, s)
	}
	returns := func(start, action uint32) span {
		return span{start: start, leaf: code{ret(action)}, action: action, simple: true}
	}
	for _, a := range abisOf(audit) {
		if !slices.Contains(wanted, a) {
			add(returns(a.bit, unix.SECCOMP_RET_KILL_THREAD))
			continue
		}
		next := a.bit
		for _, call := range numbered(a, rules) {
			if call.nr > next {
				add(returns(next, fallback))
			}
			next = call.nr + 1
			if action, simple := unconditional(call.rules, fallback); simple {
				add(returns(call.nr, action))
				continue
			}
			add(span{start: call.nr, leaf: assembleRules(call.rules, a.narrow, fallback)})
		}
		add(returns(next, beyond(fallback)))
	}
	return searchTree(spans)
}

// abisOf are the ABIs that share an audit value, by ascending numbers.
func abisOf(audit uint32) (same []*abi) {
	for i := range abis {
		if abis[i].audit == audit {
			same = append(same, &abis[i])
		}
	}
	return same
}

// beyond is the action for calls with numbers above all that the filter knows:
// ENOSYS where the default action would forbid them.
func beyond(fallback uint32) uint32 {
	switch fallback & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return fallback
	}
	return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
}

type numberedRules struct {
	nr    uint32
	rules []rule
}

// numbered gives the rules of the calls that a has, by ascending numbers.
func numbered(a *abi, rules ruleSet) (calls []numberedRules) {
	for name, r := range rules {
		if nr, ok := a.number(name); ok {
			calls = append(calls, numberedRules{nr, r})
		}
	}
	slices.SortFunc(calls, func(a, b numberedRules) int { return int(a.nr) - int(b.nr) })
	return calls
}

// unconditional says whether one action holds whatever the arguments are.
func unconditional(rules []rule, fallback uint32) (action uint32, ok bool) {
	if len(rules) == 0 {
		return fallback, true
	}
	for _, r := range rules {
		if len(r.args) == 0 {
			return r.action, true
		}
	}
	return 0, false
}

// searchTree finds the span of the number in the accumulator by halving.
func searchTree(spans []span) code {
	if len(spans) == 1 {
		return spans[0].leaf
	}
	middle := len(spans) / 2
	return branch(opJge, spans[middle].start, searchTree(spans[middle:]), searchTree(spans[:middle]))
}

// assembleRules tries rules in order. Each ends in its action or runs on into
// the next one.
func assembleRules(rules []rule, narrow bool, fallback uint32) (program code) {
	for _, r := range rules {
		body := code{ret(r.action)}
		for _, arg := range slices.Backward(r.args) {
			body = assembleArg(arg, narrow, body)
		}
		program = append(program, body...)
	}
	return append(program, ret(fallback))
}

// assembleArg runs then if the condition holds, and otherwise jumps over it.
// then is short: six conditions of at most seven instructions.
func assembleArg(arg specs.LinuxSeccompArg, narrow bool, then code) code {
	op, value, mask := arg.Op, arg.Value, ^uint64(0)
	if op == specs.OpMaskedEqual {
		op, mask, value = specs.OpEqualTo, arg.Value, arg.ValueTwo&arg.Value
	}
	low := append(loadMasked(arg.Index, 0, uint32(mask)), compareLow(op, uint32(value), uint8(len(then)))...)
	if narrow {
		return append(low, then...)
	}
	high := append(loadMasked(arg.Index, 4, uint32(mask>>32)), compareHigh(op, uint32(value>>32), uint8(len(low)), uint8(len(then)))...)
	return slices.Concat(high, low, then)
}

// loadMasked loads half of an argument.
func loadMasked(index uint, half, mask uint32) code {
	c := code{load(offsetArgs + 8*uint32(index) + half)}
	if mask != ^uint32(0) {
		c = append(c, unix.SockFilter{Code: opAnd, K: mask})
	}
	return c
}

// compareLow runs on if the comparison holds and skips then otherwise.
func compareLow(op specs.LinuxSeccompOperator, k uint32, then uint8) code {
	switch op {
	case specs.OpEqualTo:
		return code{{Code: opJeq, Jf: then, K: k}}
	case specs.OpNotEqual:
		return code{{Code: opJeq, Jt: then, K: k}}
	case specs.OpGreaterThan:
		return code{{Code: opJgt, Jf: then, K: k}}
	case specs.OpGreaterEqual:
		return code{{Code: opJge, Jf: then, K: k}}
	case specs.OpLessThan:
		return code{{Code: opJge, Jt: then, K: k}}
	default: // OpLessEqual
		return code{{Code: opJgt, Jt: then, K: k}}
	}
}

// compareHigh skips low if the upper halves decide that the comparison holds,
// low and then if they decide that it does not, and runs on into low if they
// are equal.
func compareHigh(op specs.LinuxSeccompOperator, k uint32, low, then uint8) code {
	switch op {
	case specs.OpEqualTo:
		return code{{Code: opJeq, Jf: low + then, K: k}}
	case specs.OpNotEqual:
		return code{{Code: opJeq, Jf: low, K: k}}
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		return code{{Code: opJgt, Jt: low + 1, K: k}, {Code: opJeq, Jf: low + then, K: k}}
	default: // OpLessThan, OpLessEqual
		return code{{Code: opJgt, Jt: low + 1 + then, K: k}, {Code: opJeq, Jf: low, K: k}}
	}
}
