package latemounts

import (
	"slices"
	"testing"
)

func at(path, device string, id uint64) submount { return submount{shows{path, device, "/"}, id} }

func TestSeen(t *testing.T) {
	a, lower, upper := at("a", "0:1", 1), at("c", "0:3", 2), at("c", "0:4", 3)
	if got := seen([]submount{lower, a, upper}); !slices.Equal(got, []submount{a, upper}) {
		t.Errorf("seen are %v, want %v and %v", got, a, upper)
	}
}

func TestDifference(t *testing.T) {
	a, b, c, other := at("a", "0:1", 11), at("a/b", "0:2", 12), at("c", "0:3", 13), at("c", "0:4", 14)
	for _, test := range []struct {
		name                         string
		want, have, surplus, missing []submount
	}{
		{"nothing", nil, nil, nil, nil},
		{"the same", []submount{a, b}, []submount{a, b}, nil, nil},
		{"new ones, parents first", []submount{a, b, c}, []submount{c}, nil, []submount{a, b}},
		{"old ones, children first", []submount{c}, []submount{a, b, c}, []submount{b, a}, nil},
		{"another in its place", []submount{other}, []submount{c}, []submount{c}, []submount{other}},
		{"one on the other", []submount{c, c}, []submount{c}, nil, []submount{c}},
		{"one of two", []submount{c}, []submount{c, c}, []submount{c}, nil},
	} {
		surplus, missing := difference(test.want, test.have)
		if !slices.Equal(surplus, test.surplus) || !slices.Equal(missing, test.missing) {
			t.Errorf("%s: surplus %v, missing %v, want %v and %v", test.name, surplus, missing, test.surplus, test.missing)
		}
	}
}
