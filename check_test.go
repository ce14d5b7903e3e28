package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
)

func TestQEMUVersion(t *testing.T) {
	for _, tc := range []struct{ out, want, err string }{
		{"QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u16)\nCopyright (c) 2003-2022", "7.2.19", ""},
		{"QEMU emulator version 10.0.2\n", "10.0.2", ""},
		{"QEMU emulator version 8.0", "8.0", ""},
		{"QEMU emulator version 7.1.0\n", "", "too old"},
		{"QEMU emulator version 6.2.0\n", "", "too old"},
		{"usage: qemu\n", "", "does not say"},
	} {
		got, err := qemuVersion(tc.out)
		if got != tc.want || (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("qemuVersion(%q) = %q, %v, want %q, %q", tc.out, got, err, tc.want, tc.err)
		}
	}
	for version, fault := range map[string]bool{"7.2.22": false, "10.0.13": true, "10.1.0": false, "9.2": false} {
		if got := emulationFault(version); (got != "") != fault {
			t.Errorf("emulationFault(%q) = %q, want one: %v", version, got, fault)
		}
	}
}

func TestReport(t *testing.T) {
	has := func() (finding, error) { return finding{Found: "here"}, nil }
	slow := func(do string) func() (finding, error) {
		return func() (finding, error) { return finding{Found: "slow", Advice: do}, nil }
	}
	lacks := func() (finding, error) { return finding{}, errors.New("none:\ninstall it") }
	for _, tc := range []struct {
		checks []check
		want   string
		err    string
	}{
		{[]check{{"one", has}, {"number two", has}}, "one         ok  here\nnumber two  ok  here\n\nNothing needs doing.\n", ""},
		{
			[]check{{"one", has}, {"two", slow("buy it")}, {"three", slow("sell it")}},
			"one    ok       here\ntwo    warning  slow\nthree  warning  slow\n\nMost worth doing: two: buy it\n", "",
		},
		{
			[]check{{"one", slow("buy it")}, {"two", lacks}, {"three", lacks}},
			"one    warning  slow\ntwo    missing  none: install it\nthree  missing  none: install it\n\nMost worth doing: two: none: install it\n",
			"no container can run on this machine for want of: two, three",
		},
	} {
		var out strings.Builder
		r := lookAll(tc.checks)
		if err := r.writeTable(&out); err != nil || out.String() != tc.want {
			t.Errorf("report, %v:\n%swant\n%s", err, out.String(), tc.want)
		}
		if err := r.err(); (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("error of the report = %v, want %q", err, tc.err)
		}
	}
	var out strings.Builder
	if err := writeJSON(&out, lookAll([]check{{"one", has}, {"two", slow("buy it")}})); err != nil {
		t.Fatal(err)
	}
	want := `{"checks": [{"what": "one", "state": "ok", "found": "here"},
		{"what": "two", "state": "warning", "found": "slow", "advice": "buy it"}], "advice": "two: buy it"}`
	if got := strings.Join(strings.Fields(out.String()), ""); got != strings.Join(strings.Fields(want), "") {
		t.Errorf("JSON = %s, want %s", out.String(), want)
	}
}

func TestKVMAdvice(t *testing.T) {
	for _, tc := range []struct {
		flags  string
		device bool
		want   string
	}{
		{"fpu hypervisor", true, "nested virtualization"},
		{"fpu hypervisor", false, "nested virtualization"},
		{"fpu", false, "firmware"},
		{"fpu vmx", false, "modprobe kvm_intel"},
		{"fpu svm hypervisor", false, "modprobe kvm_amd"},
		{"fpu vmx", true, "usermod"},
	} {
		value, err := accel.CPUInfo(strings.NewReader("processor\t: 0\nflags\t\t: "+tc.flags+"\nprocessor\t: 1\nflags\t: x\n"), "flags")
		if err != nil {
			t.Fatal(err)
		}
		flags := strings.Fields(value)
		if got := kvmAdvice(flags, tc.device); !strings.Contains(got, tc.want) {
			t.Errorf("kvmAdvice(%q, %v) = %q, want %q in it", flags, tc.device, got, tc.want)
		}
	}
}

func TestLimits(t *testing.T) {
	const with, without = "Name:\tx\nCapEff:\t000001ffffffffff\n", "CapEff:\t000001fffeffffff\n"
	if !mayRaiseLimits(with) || mayRaiseLimits(without) || mayRaiseLimits("") {
		t.Errorf("mayRaiseLimits = %v, %v, %v, want true, false, false", mayRaiseLimits(with), mayRaiseLimits(without), mayRaiseLimits(""))
	}
	for _, tc := range []struct {
		limit   uint64
		raised  bool
		advised bool
	}{{1024, true, false}, {4096, false, true}, {1 << 20, false, false}} {
		if f := filesWithin(tc.limit, tc.raised); (f.Advice != "") != tc.advised {
			t.Errorf("filesWithin(%d, %v) = %+v, want advice: %v", tc.limit, tc.raised, f, tc.advised)
		}
	}
	if f := roomForTemplates("/run", 100<<20); !strings.Contains(f.Found, "100 MiB free") || !strings.Contains(f.Advice, "--template-dir") {
		t.Errorf("roomForTemplates(100 MiB) = %+v", f)
	}
	if f := roomForTemplates("/run", 1<<30); f.Advice != "" {
		t.Errorf("roomForTemplates(1 GiB) = %+v, want no advice", f)
	}
}

func TestUserNamespaces(t *testing.T) {
	for _, tc := range []struct{ file, value, want string }{
		{"", "", "allowed"},
		{"proc/sys/kernel/unprivileged_userns_clone", "0\n", "sysctl kernel.unprivileged_userns_clone=1"},
		{"proc/sys/kernel/unprivileged_userns_clone", "1\n", "allowed"},
		{"proc/sys/user/max_user_namespaces", "0\n", "max_user_namespaces=10000"},
		{"proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor profile"},
	} {
		files := fstest.MapFS{"proc/self/ns/user": {}}
		if tc.file != "" {
			files[tc.file] = &fstest.MapFile{Data: []byte(tc.value)}
		}
		f, err := (&host{uid: 1000, files: files}).userNamespaces()
		got := f.Found
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tc.want) || (err == nil) != (tc.want == "allowed") {
			t.Errorf("%s=%q: %+v, %v, want %q", tc.file, tc.value, f, err, tc.want)
		}
		if f, err := (&host{files: files}).userNamespaces(); err != nil || f.Advice != "" {
			t.Errorf("%s=%q: root's is %+v, %v", tc.file, tc.value, f, err)
		}
	}
	if _, err := (&host{uid: 1000, files: fstest.MapFS{}}).userNamespaces(); err == nil {
		t.Error("without user namespaces a user's containers run")
	}
}

func TestSELinux(t *testing.T) {
	for value, want := range map[string]string{"": "off", "0": "permissive", "1": "enforced"} {
		files := fstest.MapFS{}
		if value != "" {
			files["sys/fs/selinux/enforce"] = &fstest.MapFile{Data: []byte(value)}
		}
		f, err := (&host{files: files}).selinux()
		if err != nil || !strings.HasPrefix(f.Found, want) || strings.Contains(f.Advice, "label=disable") != (value == "1") {
			t.Errorf("SELinux %q: %+v, %v, want %s", value, f, err, want)
		}
	}
}

func TestDiskHint(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "/run/x", Err: unix.ENOSPC}
	for _, err := range []error{full, fault.Wrap("write state", full), guestproto.Errorf(guestproto.CodeDiskFull, "mkdir /not")} {
		if got := diskHint(err); !strings.Contains(got, "df -h") {
			t.Errorf("diskHint(%v) = %q, want df -h in it", err, got)
		}
	}
	for _, err := range []error{fs.ErrNotExist, guestproto.Errorf(guestproto.CodeInternal, "%v", full)} {
		if got := diskHint(err); got != "" {
			t.Errorf("diskHint(%v) = %q", err, got)
		}
	}
}

func TestBridgeNF(t *testing.T) {
	on := fstest.MapFS{
		"proc/sys/net/bridge/bridge-nf-call-iptables":  {Data: []byte("1\n")},
		"proc/sys/net/bridge/bridge-nf-call-ip6tables": {Data: []byte("1\n")},
	}
	for want, files := range map[string]fstest.MapFS{"on,": on, "off ": {}} {
		if got := (&host{files: files}).bridgeNF(); !strings.HasPrefix(got, want) {
			t.Errorf("bridgeNF() = %q, want %q", got, want)
		}
	}
}
