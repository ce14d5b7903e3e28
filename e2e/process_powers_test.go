package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// powers is what a process of boxlite's may do on the host.
type powers struct {
	process      string
	user         string // and group
	capabilities string // permitted and effective; the others are none, but for "all"
	noNewPrivs   string
	seccomp      string
	root         string // and working directory
	directories  string // that it has open
}

// processPowers is the table of docs/architecture.md, "What each process may do".
var processPowers = []powers{
	{"QEMU", "its own", "none", "yes", "yes", "empty", "none"},
	{"virtiofsd, which waits", "root", "none", "yes", "no", "the share", "none"},
	{"virtiofsd, which serves", "root", filePowers + " (MKNOD)", "yes", "yes", "the share", "of the share, of its own /proc"},
	{"keeper", "root", "all", "no", "no", "the host's", "none"},
	{"monitor", "root", "KILL (NET_ADMIN)", "yes", "yes", "the rootfs", "none"},
	{"detached exec; member's stand-in", "root", "none", "yes", "yes", "the rootfs", "none"},
	{"mirror of mounts", "root", "DAC_READ_SEARCH SYS_ADMIN", "yes", "yes", "the binds", "of the share"},
	{"dialer of sockets", "root", "DAC_OVERRIDE SETGID SETUID", "yes", "yes", "the host's", "none"},
}

const (
	rowQEMU = iota
	rowWaits
	rowServes
	rowKeeper
	rowMonitor
	rowExec
	rowMirror
	rowDialer
)

const filePowers = "CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID SETFCAP"

// capabilityBits are those that a row may name.
var capabilityBits = map[string]int{
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "SETGID": unix.CAP_SETGID,
	"SETUID": unix.CAP_SETUID, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "SETFCAP": unix.CAP_SETFCAP, "MKNOD": unix.CAP_MKNOD, "KILL": unix.CAP_KILL, "NET_ADMIN": unix.CAP_NET_ADMIN,
}

func TestProcessPowersInTheDocuments(t *testing.T) {
	text, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processPowers {
		row := "| " + strings.Join([]string{p.process, p.user, p.capabilities, p.noNewPrivs, p.seccomp, p.root, p.directories}, " | ") + " |\n"
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/architecture.md lacks %q", row)
		}
	}
}

// ids are users and groups of the host, by what the table calls them.
type ids struct{ root, own int }

// ownID is what QEMU is to root, started by the process pid.
func ownID(pid int) ids { return ids{own: 0x7f000000 + pid} }

// row is one of processPowers, without the capability in parentheses or with it.
func row(i int, with bool) powers {
	p := processPowers[i]
	always, sometimes, _ := strings.Cut(p.capabilities, " (")
	p.capabilities = always
	if with {
		p.capabilities += " " + strings.TrimSuffix(sometimes, ")")
	}
	return p
}

// wantPowers compares a process with a row.
func (e *env) wantPowers(pid int, who ids, want powers) {
	e.Helper()
	got := powers{process: want.process}
	status := e.processStatus(pid)
	got.user = who.describe(status)
	executes := !slices.ContainsFunc([]int{rowMonitor, rowExec, rowMirror, rowDialer}, func(i int) bool { return want.process == processPowers[i].process })
	got.capabilities = e.describeCapabilities(status, executes)
	got.noNewPrivs = map[string]string{"0": "no", "1": "yes"}[status["NoNewPrivs"]]
	got.seccomp = map[string]string{"0": "no", "2": "yes"}[status["Seccomp"]]
	got.root = e.describeRoot(pid)
	got.directories = e.describeDirectories(pid)
	if got != want {
		e.Errorf("process %d:\n got %+v\nwant %+v", pid, got, want)
	}
}

// processStatus is /proc/PID/status.
func (e *env) processStatus(pid int) map[string]string {
	e.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	e.noErr(err)
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func (who ids) describe(status map[string]string) string {
	all := func(id int) string { return strings.TrimSpace(strings.Repeat(" "+itoa(id), 4)) }
	for name, id := range map[string]int{"root": who.root, "its own": who.own} {
		if status["Uid"] == all(id) && status["Gid"] == all(id) && status["Groups"] == "" {
			return name
		}
	}
	return fmt.Sprintf("user %s, group %s and %q", status["Uid"], status["Gid"], status["Groups"])
}

// describeCapabilities looks at the bounding set only where the process may execute programs, which is what that set is for.
func (e *env) describeCapabilities(status map[string]string, executes bool) string {
	e.Helper()
	const empty = "0000000000000000"
	effective, own := status["CapEff"], e.processStatus(os.Getpid())["CapEff"]
	odd := fmt.Sprintf("permitted %s effective %s bounding %s inheritable %s ambient %s",
		status["CapPrm"], effective, status["CapBnd"], status["CapInh"], status["CapAmb"])
	if status["CapPrm"] != effective || status["CapInh"] != empty || status["CapAmb"] != empty {
		return odd
	}
	if effective == own && status["CapBnd"] == own {
		return "all"
	}
	if status["CapBnd"] != empty && executes {
		return odd
	}
	bits, err := strconv.ParseUint(effective, 16, 64)
	e.noErr(err)
	var names []string
	for _, name := range append(strings.Fields(filePowers), "MKNOD", "KILL", "NET_ADMIN", "NET_BIND_SERVICE", "DAC_READ_SEARCH", "SYS_ADMIN") {
		if bit := uint64(1) << capabilityBits[name]; bits&bit != 0 {
			names = append(names, name)
			bits &^= bit
		}
	}
	switch {
	case bits != 0:
		return odd
	case len(names) == 0:
		return "none"
	}
	return strings.Join(names, " ")
}

// describeRoot also looks at the working directory.
func (e *env) describeRoot(pid int) string {
	e.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	if e.sameFile(proc+"root/", "/") {
		return "the host's"
	}
	if !e.sameFile(proc+"root/", proc+"cwd/") {
		return "not where it works"
	}
	entries, err := os.ReadDir(proc + "root/")
	e.noErr(err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	switch strings.Join(names, " ") {
	case "":
		return "empty"
	case "rootfs", "mounts rootfs":
		return "the share"
	case "0-0 0-1":
		return "the binds"
	}
	if slices.Contains(names, "bin") && slices.Contains(names, "proc") {
		return "the rootfs"
	}
	return fmt.Sprintf("of %q", names)
}

func (e *env) sameFile(a, b string) bool {
	e.Helper()
	first, err := os.Stat(a)
	e.noErr(err)
	second, err := os.Stat(b)
	e.noErr(err)
	return os.SameFile(first, second)
}

// describeDirectories says of what file systems a process has directories open. The mounts that it sees are those of its root.
func (e *env) describeDirectories(pid int) string {
	e.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	table, err := os.Open(proc + "mountinfo")
	e.noErr(err)
	defer table.Close()
	seen, err := mountinfo.GetMountsFromReader(table, nil)
	e.noErr(err)
	mounts := map[string]bool{}
	for _, m := range seen {
		mounts[strconv.Itoa(m.ID)] = true
	}
	descriptors, err := os.ReadDir(proc + "fd")
	e.noErr(err)
	found := map[string]bool{}
	for _, d := range descriptors {
		path := proc + "fd/" + d.Name()
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		e.noErr(err)
		if !st.IsDir() {
			continue
		}
		var sfs unix.Statfs_t
		e.noErr(unix.Statfs(path, &sfs))
		info, err := os.ReadFile(proc + "fdinfo/" + d.Name())
		e.noErr(err)
		_, mount, _ := strings.Cut(string(info), "mnt_id:\t")
		mount, _, _ = strings.Cut(mount, "\n")
		switch {
		case sfs.Type == unix.PROC_SUPER_MAGIC:
			found["of its own /proc"] = true
		case mounts[mount]:
			found["of the share"] = true
		default:
			link, _ := os.Readlink(path) // for people
			found["others: "+link] = true
		}
	}
	names := []string{}
	for name := range found {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	slices.Reverse(names)
	return strings.Join(names, ", ")
}

// childrenOf are the children of a process, by name.
func (e *env) childrenOf(pid int) map[string]int {
	e.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	e.noErr(err)
	children := map[string]int{}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has ended
		}
		e.noErr(err)
		for child := range strings.FieldsSeq(string(text)) {
			comm, err := os.ReadFile("/proc/" + child + "/comm")
			e.noErr(err)
			n, err := strconv.Atoi(child)
			e.noErr(err)
			name := strings.TrimSpace(string(comm))
			if strings.HasPrefix(name, "qemu-system") {
				name = "QEMU"
			}
			children[name] = n
		}
	}
	return children
}

// wantPartsPowers looks at the children of a monitor: QEMU, unless a keeper has it, and both of virtiofsd.
func (e *env) wantPartsPowers(monitor int, who ids, qemu, serves powers) {
	e.Helper()
	children := e.childrenOf(monitor)
	if pid, ok := children["QEMU"]; ok {
		e.wantPowers(pid, who, qemu)
		delete(children, "QEMU")
	}
	if len(children) != 1 {
		e.Fatalf("children of the monitor beside QEMU: %v, want virtiofsd", children)
	}
	for _, waits := range children {
		e.wantPowers(waits, who, row(rowWaits, false))
		inner := e.childrenOf(waits)
		if len(inner) != 1 {
			e.Fatalf("children of virtiofsd: %v, want one", inner)
		}
		for _, pid := range inner {
			e.wantPowers(pid, who, serves)
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", monitor))
	e.noErr(err)
	for _, task := range tasks {
		st, err := os.Stat(task + "/root/")
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		e.noErr(err)
		host, err := os.Stat("/")
		e.noErr(err)
		if os.SameFile(st, host) {
			e.Errorf("%s of the monitor has the host's root", task)
		}
	}
}
