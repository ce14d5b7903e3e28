// A package of its own: its imports must not be those of nofile.
package nofile_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/nofile"
)

// asked has the test binary print what it began with.
const asked = "NOFILE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asked) != "" {
		fmt.Println(nofile.Soft, nofile.Hard)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestBeforeGoRaisesIt(t *testing.T) {
	cmd := exec.Command("sh", "-c", `ulimit -Sn 123 && ulimit -Hn 456 && exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), asked+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "123 456\n" {
		t.Errorf("limits = %q (%v), want 123 456", out, err)
	}
}
