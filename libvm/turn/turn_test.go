package turn

import (
	"path/filepath"
	"testing"
	"time"
)

func TestTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "turns")
	take := func() func() {
		release, err := Take(path, 2, time.Minute)
		if err != nil {
			t.Error(err)
			return func() {}
		}
		return release
	}
	first, second := take(), take()
	if _, err := Take(path, 2, 50*time.Millisecond); err == nil {
		t.Fatal("three have a turn where there are two places")
	}

	next := make(chan func())
	go func() { next <- take() }()
	first()
	second()
	third := <-next
	third()
	third() // does nothing
	// The turns that nobody had the patience to wait for are nobody's.
	take()()
	fourth, fifth := take(), take()
	fourth()
	fifth()

	// Calm is when nobody has one.
	if err := AwaitCalm(t.Context(), path, 50*time.Millisecond); err != nil {
		t.Errorf("where nobody has a turn: %v", err)
	}
	sixth := take()
	if err := AwaitCalm(t.Context(), path, 50*time.Millisecond); err == nil {
		t.Error("calm beside somebody with a turn")
	}
	calm := make(chan error)
	go func() { calm <- AwaitCalm(t.Context(), path, time.Minute) }()
	sixth()
	if err := <-calm; err != nil {
		t.Error(err)
	}
	take()() // calm holds none

	if _, err := Take(filepath.Join(path, "no", "directory"), 2, time.Minute); err == nil {
		t.Error("a file that cannot be made is no error")
	}
}
