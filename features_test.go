package main

import (
	"encoding/json"
	"slices"
	"testing"
)

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
