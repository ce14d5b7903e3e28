package vmm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestExitProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, exitProgram(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path).CombinedOutput()
	if err != nil || string(out) != "!\n" {
		t.Errorf("it says %q, %v", out, err)
	}
}
