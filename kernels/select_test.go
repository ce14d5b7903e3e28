package kernels

import (
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	netAdmin := []string{"CAP_CHOWN", "CAP_NET_ADMIN"}
	tests := []struct {
		name       string
		caps       []string
		annotation string
		flag       string
		want       Kernel
		reason     string
	}{
		{"no capabilities", nil, "", "", Lean, "CAP_NET_ADMIN is not among the capabilities"},
		{"other capabilities", []string{"CAP_SYS_ADMIN", "CAP_NET_RAW"}, "", "", Lean, "CAP_NET_ADMIN is not among the capabilities"},
		{"net admin", netAdmin, "", "", Net, "CAP_NET_ADMIN is among the capabilities"},
		{"annotation over capabilities", netAdmin, "lean", "", Lean, "annotation boxlite.kernel"},
		{"flag over capabilities", nil, "", "net", Net, "flag --kernel"},
		{"flag over annotation", nil, "net", "lean", Lean, "flag --kernel"},
		{"flag over a wrong annotation", nil, "tiny", "lean", Lean, "flag --kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason, err := Select(tt.caps, tt.annotation, tt.flag)
			if err != nil || got != tt.want || reason != tt.reason {
				t.Errorf("Select(%q, %q, %q) = %q, %q, %v, want %q, %q, nil",
					tt.caps, tt.annotation, tt.flag, got, reason, err, tt.want, tt.reason)
			}
		})
	}
}

func TestSelectUnknown(t *testing.T) {
	tests := []struct{ annotation, flag, from string }{
		{"host", "", "annotation boxlite.kernel"}, // a kernel for tests, not for containers
		{"", "Net", "flag --kernel"},
		{"net", "tiny", "flag --kernel"},
	}
	for _, tt := range tests {
		kernel, reason, err := Select(nil, tt.annotation, tt.flag)
		if err == nil {
			t.Errorf("Select(nil, %q, %q) = %q, %q, nil, want an error", tt.annotation, tt.flag, kernel, reason)
			continue
		}
		for _, part := range []string{tt.from, `"lean"`, `"net"`} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("Select(nil, %q, %q): error %q does not name %s", tt.annotation, tt.flag, err, part)
			}
		}
	}
}
