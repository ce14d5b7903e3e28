package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestAttributesOfBinds(t *testing.T) {
	for options, want := range map[string]struct{ top, below, topOnly bool }{
		"rbind,rprivate":    {},
		"rbind,ro,rprivate": {top: true, topOnly: true},
		"bind,ro":           {top: true},
		"rbind,ro,rw":       {topOnly: true},
		"rbind,rro":         {top: true, below: true},
		"rbind,rro,rw":      {top: true, below: true, topOnly: true},
		"rbind,ro,rrw":      {topOnly: true},
		"rbind,nosuid":      {topOnly: true},
		"rbind,rnosuid":     {},
	} {
		words := strings.Split(options, ",")
		top, below := readOnly(words)
		if topOnly := reachesTopOnly(words); top != want.top || below != want.below || topOnly != want.topOnly {
			t.Errorf("%s: read-only top %v, below %v, attributes of the top alone %v; want %+v", options, top, below, topOnly, want)
		}
	}
}

func TestFollows(t *testing.T) {
	for _, c := range []struct {
		root    string
		options []string
		want    bool
	}{
		{"", []string{"rbind"}, true}, // as runc
		{"", []string{"rbind", "rprivate"}, false},
		{"", []string{"rbind", "private", "rslave"}, true}, // the last one counts
		{"", []string{"rbind", "rslave", "unbindable"}, false},
		{"rprivate", []string{"rbind"}, false},
		{"private", []string{"bind", "slave"}, true},
		{"rslave", []string{"rbind"}, true},
		{"rshared", []string{"rbind", "ro"}, true},
	} {
		p := &Plan{Guest: &specs.Spec{Linux: &specs.Linux{RootfsPropagation: c.root}}}
		if got, err := p.follows(c.options); got != c.want || err != nil {
			t.Errorf("root %q, options %q: follows = %v, %v, want %v", c.root, c.options, got, err, c.want)
		}
	}
	for _, o := range []string{"shared", "rshared"} {
		if _, err := (&Plan{Guest: &specs.Spec{}}).follows([]string{"rbind", o}); err == nil || !strings.Contains(err.Error(), o) {
			t.Errorf("%s: %v", o, err)
		}
	}
}
