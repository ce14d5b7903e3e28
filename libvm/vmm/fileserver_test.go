package vmm

import (
	"os"
	"testing"
	"time"
)

// The table of a process is as large as it must be for its descriptors, and its
// work shows when it has done some.
func TestFileServer(t *testing.T) {
	status, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Open("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	p := &FileServer{status: status, stat: stat}
	defer p.Close()
	const many = 700
	for range many {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if size, err := p.TableSize(); err != nil || size < many || size > 8*many {
		t.Errorf("tableSize = %d, %v with %d descriptors", size, err, many)
	}
	before, err := p.Work()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		now, err := p.Work() // which is work
		if err != nil {
			t.Fatal(err)
		}
		if now != before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("work = %q still", now)
		}
	}
}
