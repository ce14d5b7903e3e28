package libvm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/boxlite-oci/boxlite/internal/trace"
)

// What a guest says of its steps is left out where it cannot be true.
func TestCheckSteps(t *testing.T) {
	good := trace.Span{Name: "mount", Begin: 100, Micros: 200}
	steps := []trace.Span{
		good,
		{Name: "before", Begin: -1},
		{Name: "backwards", Micros: -1},
		{Name: "later", Begin: 2_000_000},
		{Name: "longer", Micros: 2_000_000},
		{Name: strings.Repeat("x", 65)},
		{Name: "another's", Lane: "monitor"},
	}
	if got := checkSteps(steps, time.Second); !slices.Equal(got, []trace.Span{good}) {
		t.Errorf("left %v", got)
	}
	if got := checkSteps(slices.Repeat([]trace.Span{good}, 1000), time.Second); len(got) != maxSteps {
		t.Errorf("left %d of 1000", len(got))
	}
}
