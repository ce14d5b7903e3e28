package self

import (
	"slices"
	"strings"
	"testing"
)

func TestFirstArgs(t *testing.T) {
	long := strings.Repeat("x", mostShown)
	many := slices.Repeat([]string{"one"}, mostShown)
	for _, c := range []struct {
		name       string
		args, want []string
	}{
		{"what fits", []string{"sh", "-c", ""}, []string{"sh", "-c", ""}},
		{"just", []string{"a", long[3:]}, []string{"a", long[3:]}},
		{"a long one", []string{"a", long, "b"}, []string{"a", long[3:] + "..."}},
		{"the first", []string{long + long}, []string{long[1:] + "..."}},
		{"many", many, append(slices.Clone(many[:mostShown/4]), "...")},
	} {
		if got := firstArgs(c.args); !slices.Equal(got, c.want) {
			t.Errorf("%s: firstArgs gives %d arguments of %d bytes, want %d of %d", c.name, len(got), size(got), len(c.want), size(c.want))
		}
	}
}

func size(args []string) int { return len(strings.Join(args, "")) }
