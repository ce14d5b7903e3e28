package latemounts

import (
	"slices"
	"testing"
)

func TestDifference(t *testing.T) {
	a, b, c := submount{"a", "0:1", "/"}, submount{"a/b", "0:2", "/"}, submount{"c", "0:3", "/"}
	other := submount{"c", "0:4", "/"}
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
