package fault

import (
	"os"
	"strings"
	"testing"
)

// Callers of runc turn these phrases into exit codes 126 and 127.
func TestPartErrorAvoidsPhrasesOfCommands(t *testing.T) {
	for _, path := range []string{"/nonexistent", "/etc/passwd/x"} {
		_, err := os.Open(path)
		got := strings.ToLower(Wrap("open the kernel image", err).Error())
		for _, phrase := range []string{"not found", "no such file", "permission denied", "operation not permitted", "not a directory", "is a directory"} {
			if strings.Contains(got, phrase) {
				t.Errorf("partError says %q", got)
			}
		}
	}
	if got := Quiet("qemu: could not open 'x': No such file or directory"); strings.Contains(strings.ToLower(got), "no such file") {
		t.Errorf("quiet leaves %q", got)
	}
}
