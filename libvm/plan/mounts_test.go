package plan

import (
	"strings"
	"testing"
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
