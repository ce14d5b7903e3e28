package plan

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// What guestinit accepts is written down there; here is the same.
func TestMountOptionsAreGuestinits(t *testing.T) {
	source, err := os.ReadFile("../../guestinit/mountoptions.go")
	if err != nil {
		t.Fatal(err)
	}
	var attributes, others []string
	for _, m := range regexp.MustCompile(`\{name: "(\w+)"(.*)\},\n`).FindAllStringSubmatch(string(source), -1) {
		if regexp.MustCompile(` (set|clear): `).MatchString(m[2]) {
			attributes = append(attributes, m[1])
		} else {
			others = append(others, m[1])
		}
	}
	slices.Sort(attributes)
	slices.Sort(others)
	if !slices.Equal(attributes, attributeOptions) {
		t.Errorf("attributeOptions = %q, guestinit has %q", attributeOptions, attributes)
	}
	if !slices.Equal(others, otherOptions) {
		t.Errorf("otherOptions = %q, guestinit has %q", otherOptions, others)
	}
}
