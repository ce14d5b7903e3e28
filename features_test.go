package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"
)

// What guestinit accepts is written down there; features says the same.
func TestMountOptionsAreGuestinits(t *testing.T) {
	source, err := os.ReadFile("guestinit/mountoptions.go")
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

// CRI-O discards features without the two versions; dockerd and containerd
// look for rro and for id-mapped mounts.
func TestFeaturesForCallers(t *testing.T) {
	raw, err := json.Marshal(runtimeFeatures())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		OCIVersionMin, OCIVersionMax string
		MountOptions                 []string
		Linux                        struct {
			Capabilities    []string
			MountExtensions struct{ IDMap struct{ Enabled *bool } }
		}
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got.OCIVersionMin == "" || got.OCIVersionMax == "" || !slices.Contains(got.MountOptions, "rro") ||
		got.Linux.MountExtensions.IDMap.Enabled == nil || !slices.Contains(got.Linux.Capabilities, "CAP_SYS_ADMIN") || len(got.Linux.Capabilities) != 41 {
		t.Errorf("features = %s", raw)
	}
	if !slices.IsSorted(got.MountOptions) || len(slices.Compact(slices.Clone(got.MountOptions))) != len(got.MountOptions) {
		t.Errorf("mountOptions = %q, want them sorted and each once", got.MountOptions)
	}
}
