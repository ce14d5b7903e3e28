package main

import (
	"errors"
	"strings"
	"testing"
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
}

func TestReport(t *testing.T) {
	has := func() (string, error) { return "here", nil }
	lacks := func() (string, error) { return "", errors.New("none:\ninstall it") }
	var out strings.Builder
	if err := report(&out, []check{{"one", has}, {"number two", has}}); err != nil {
		t.Errorf("report with everything = %v", err)
	}
	if want := "one         ok  here\nnumber two  ok  here\n"; out.String() != want {
		t.Errorf("report printed\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	err := report(&out, []check{{"one", has}, {"two", lacks}, {"three", lacks}})
	if err == nil || !strings.HasSuffix(err.Error(), ": two, three") {
		t.Errorf("report = %v, want an error that names two and three", err)
	}
	if want := "one    ok       here\ntwo    missing  none: install it\nthree  missing  none: install it\n"; out.String() != want {
		t.Errorf("report printed\n%swant\n%s", out.String(), want)
	}
}
